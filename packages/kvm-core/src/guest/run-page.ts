/** The pages that a vCPU shares with its VMM: `struct kvm_run`, the port data page, the coalesced MMIO ring. */
import {
  KvmDebugExitArch,
  KvmRegs,
  KvmRun,
  KvmSregs,
  KvmSyncRegs,
  KvmVcpuEvents,
  type StructValue,
  VCPU_MMAP_SIZE_BYTES,
  VcpuMapping,
} from "@mkvm/kvm-abi";

const at = KvmRun.offsets;
const io = KvmRun.fields.exit.members.io.offsets;
const mmio = KvmRun.fields.exit.members.mmio.offsets;
const debug = KvmRun.fields.exit.members.debug.offsets;
const failEntry = KvmRun.fields.exit.members.fail_entry.offsets;
const msr = KvmRun.fields.exit.members.msr.offsets;
const internal = KvmRun.fields.exit.members.internal.offsets;

const SYNC_SREGS = at.s + KvmSyncRegs.offsets.sregs;
const SYNC_EVENTS = at.s + KvmSyncRegs.offsets.events;

export const PORT_DATA_OFFSET = VcpuMapping.KVM_PIO_PAGE_OFFSET * 4096;

export class RunPage {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  /** `bytes`: VCPU_MMAP_SIZE_BYTES of the process's bank, which no one frees while this object lives. */
  constructor(bytes: Uint8Array) {
    if (bytes.length !== VCPU_MMAP_SIZE_BYTES) throw new RangeError(`kvm_run of ${bytes.length} bytes`);
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get immediateExit(): boolean {
    return this.bytes[at.immediate_exit] !== 0;
  }
  get interruptWindowRequested(): boolean {
    return this.bytes[at.request_interrupt_window] !== 0;
  }
  /** Bits of `validRegs` or `dirtyRegs` are set: seldom, and cheap to see. */
  get syncsRegs(): boolean {
    const view = this.#view;
    const valid = view.getUint32(at.kvm_valid_regs, true) | view.getUint32(at.kvm_valid_regs + 4, true);
    return (valid | view.getUint32(at.kvm_dirty_regs, true) | view.getUint32(at.kvm_dirty_regs + 4, true)) !== 0;
  }
  get validRegs(): bigint {
    return this.#view.getBigUint64(at.kvm_valid_regs, true);
  }
  get dirtyRegs(): bigint {
    return this.#view.getBigUint64(at.kvm_dirty_regs, true);
  }
  set dirtyRegs(fields: bigint) {
    this.#view.setBigUint64(at.kvm_dirty_regs, fields, true);
  }
  // KVM_CAP_SYNC_REGS
  syncRegs(): StructValue<(typeof KvmRegs)["fields"]> {
    return KvmRegs.read(this.#view, at.s);
  }
  setSyncRegs(value: StructValue<(typeof KvmRegs)["fields"]>): void {
    KvmRegs.write(this.#view, value, at.s);
  }
  syncSregs(): StructValue<(typeof KvmSregs)["fields"]> {
    return KvmSregs.read(this.#view, SYNC_SREGS);
  }
  setSyncSregs(value: StructValue<(typeof KvmSregs)["fields"]>): void {
    KvmSregs.write(this.#view, value, SYNC_SREGS);
  }
  syncEvents(): StructValue<(typeof KvmVcpuEvents)["fields"]> {
    return KvmVcpuEvents.read(this.#view, SYNC_EVENTS);
  }
  setSyncEvents(value: StructValue<(typeof KvmVcpuEvents)["fields"]>): void {
    KvmVcpuEvents.write(this.#view, value, SYNC_EVENTS);
  }
  get cr8(): bigint {
    return this.#view.getBigUint64(at.cr8, true);
  }
  get exitReason(): number {
    return this.#view.getUint32(at.exit_reason, true);
  }
  set exitReason(value: number) {
    this.#view.setUint32(at.exit_reason, value, true);
  }
  /** What every return to user space tells. */
  setStatus(status: { readyForInterrupt: boolean; interruptFlag: boolean; cr8: number; apicBase: bigint }): void {
    this.bytes[at.ready_for_interrupt_injection] = status.readyForInterrupt ? 1 : 0;
    this.bytes[at.if_flag] = status.interruptFlag ? 1 : 0;
    this.#view.setUint16(at.flags, 0, true);
    this.#view.setBigUint64(at.cr8, BigInt(status.cr8), true);
    this.#view.setBigUint64(at.apic_base, status.apicBase, true);
  }
  setIo(isIn: boolean, size: number, port: number, count: number): void {
    this.bytes[io.direction] = isIn ? 0 : 1;
    this.bytes[io.size] = size;
    this.#view.setUint16(io.port, port, true);
    this.#view.setUint32(io.count, count, true);
    this.#view.setBigUint64(io.data_offset, BigInt(PORT_DATA_OFFSET), true);
  }
  /** The data of a port exit that is one item of 1, 2 or 4 bytes. */
  portItem(size: number): number {
    if (size === 1) return this.#view.getUint8(PORT_DATA_OFFSET);
    return size === 2 ? this.#view.getUint16(PORT_DATA_OFFSET, true) : this.#view.getUint32(PORT_DATA_OFFSET, true);
  }
  setPortItem(size: number, value: number): void {
    if (size === 1) this.#view.setUint8(PORT_DATA_OFFSET, value);
    else if (size === 2) this.#view.setUint16(PORT_DATA_OFFSET, value, true);
    else this.#view.setUint32(PORT_DATA_OFFSET, value, true);
  }
  /** The data of a port exit; a view. */
  portData(length: number): Uint8Array {
    return this.bytes.subarray(PORT_DATA_OFFSET, PORT_DATA_OFFSET + length);
  }
  setMmio(gpa: number, data: Uint8Array, length: number, isWrite: boolean): void {
    this.#view.setBigUint64(mmio.phys_addr, BigInt(gpa), true);
    this.bytes.fill(0, mmio.data, mmio.data + 8);
    this.bytes.set(data, mmio.data);
    this.#view.setUint32(mmio.len, length, true);
    this.bytes[mmio.is_write] = isWrite ? 1 : 0;
  }
  /** What user space answered to an MMIO read; a copy. */
  mmioData(length: number): Uint8Array {
    return this.bytes.slice(mmio.data, mmio.data + length);
  }
  get mmioLength(): number {
    return this.#view.getUint32(mmio.len, true);
  }
  setDebug(exception: number, pc: bigint, dr6: bigint, dr7: bigint): void {
    this.bytes.set(KvmDebugExitArch.encode({ exception, pad: 0, pc, dr6, dr7 }), debug.arch);
  }
  /** `data`: what the guest writes. No error yet: user space may leave the rest as it is. */
  setMsr(reason: number, index: number, data: bigint): void {
    this.bytes.fill(0, msr.error, msr.reason);
    this.#view.setUint32(msr.reason, reason, true);
    this.#view.setUint32(msr.index, index, true);
    this.#view.setBigUint64(msr.data, data, true);
  }
  get msrAnswer(): { failed: boolean; data: bigint } {
    return { failed: this.bytes[msr.error] !== 0, data: this.#view.getBigUint64(msr.data, true) };
  }
  setFailEntry(reason: number, cpu: number): void {
    this.#view.setBigUint64(failEntry.hardware_entry_failure_reason, BigInt(reason), true);
    this.#view.setUint32(failEntry.cpu, cpu, true);
  }
  setInternalError(suberror: number, data: readonly bigint[]): void {
    this.#view.setUint32(internal.suberror, suberror, true);
    this.#view.setUint32(internal.ndata, data.length, true);
    data.forEach((value, index) => {
      this.#view.setBigUint64(internal.data + index * 8, BigInt.asUintN(64, value), true);
    });
  }
  /** KVM_INTERNAL_ERROR_EMULATION with the instruction's bytes. */
  setEmulationFailure(bytes: Uint8Array): void {
    const member = KvmRun.fields.exit.members.emulation_failure.offsets;
    this.#view.setUint32(member.suberror, 1, true);
    this.#view.setUint32(member.ndata, bytes.length > 0 ? 3 : 0, true);
    this.#view.setBigUint64(member.flags, bytes.length > 0 ? 1n : 0n, true);
    this.bytes[member.insn_size] = bytes.length;
    this.bytes.fill(0x90, member.insn_bytes, member.insn_bytes + 15);
    this.bytes.set(bytes.subarray(0, 15), member.insn_bytes);
  }
}
