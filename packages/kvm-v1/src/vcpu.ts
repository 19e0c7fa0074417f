/**
 * A vCPU of version 1. General registers lie in an array; what the control structure can hold lies there and is read from it
 * whenever somebody asks; the rest (FPU, debug registers, ...) is on the CPU between `load` and `put`, and here otherwise.
 */
import { MpState, type PhysicalAddress, type Task, VCPU_MMAP_SIZE_BYTES, type WaitQueue } from "@mkvm/kvm-abi";
import {
  type CpuidEntry,
  createMmioEmulator,
  createMsrStore,
  type DebugIntercepts,
  type DescriptorTableState,
  type EventState,
  findCpuid,
  Gpr,
  GuestDebug,
  guestTsc,
  type Lapic,
  type ManagedVcpu,
  type MmioEmulator,
  Msr,
  type MsrStore,
  type PendingMsr,
  type PendingPort,
  type PvState,
  RunPage,
  resetRegisters,
  resetXsave,
  type SegmentState,
  type SignalMask,
  VcpuCounters,
} from "@mkvm/kvm-core";
import { EventQueue } from "./event-queue.ts";
import { runVcpu } from "./run-loop.ts";
import type { Vm } from "./vm.ts";

export class Vcpu implements ManagedVcpu {
  readonly vm: Vm;
  readonly id: number;
  readonly lapic: Lapic | undefined;
  readonly msrs: MsrStore;
  readonly emulator: MmioEmulator = createMmioEmulator();
  readonly queue = new EventQueue();
  readonly statistics: VcpuCounters;
  readonly waiters: WaitQueue;
  readonly runAddress: PhysicalAddress;
  readonly run: RunPage;

  // Registers that are not in the control structure
  /** 16 general registers in encoding order; RSP is in the control structure. */
  readonly gprs = new BigUint64Array(16);
  readonly #gprHalves = new Uint32Array(this.gprs.buffer);
  /** DR0 to DR3 and DR6 while off the CPU, by number. */
  readonly drs = new BigUint64Array(8);
  /** XSAVE image while off the CPU. */
  readonly fpu = resetXsave();
  savedCr2 = 0n;
  savedXcr0 = 1n;
  savedKernelGsBase = 0n;
  /** Values for the module's user-return MSRs. */
  readonly userReturn: BigUint64Array;
  /** The registers above are on the CPU. */
  loaded = false;
  /** KVM_RUN is in progress (it may be waiting). */
  running = false;

  cpuid: readonly CpuidEntry[] = [];
  readonly debug = new GuestDebug();
  pendingPort: PendingPort | undefined;
  pendingMsr: PendingMsr | undefined;
  readonly pv: PvState = { systemTime: 0n, wallClock: 0n, legacy: false, flags: 0 };
  tscAdjust = 0n;
  mpState: number = MpState.KVM_MP_STATE_RUNNABLE;
  signalMask: SignalMask = { set: undefined };
  userApicBase: bigint;
  userCr8 = 0;
  #tscOffset = 0n;

  /** What the vendor's operations keep with the vCPU. */
  vendorState: object | undefined;
  clockUpdateRequested = false;
  tlbFlushRequested = false;

  constructor(vm: Vm, id: number, runAddress: PhysicalAddress) {
    this.vm = vm;
    this.id = id;
    this.userReturn = new BigUint64Array(vm.module.userReturnMsrs.length);
    const isBootCpu = id === vm.settings.bootCpuId;
    this.userApicBase = 0xfee0_0800n | (isBootCpu ? 0x100n : 0n);
    this.statistics = new VcpuCounters(vm.process.pid, id, vm.clock, vm.module.parameters.exitLatency);
    this.msrs = createMsrStore({ archCapabilities: vm.kernel.cpu.rdmsr(Msr.IA32_ARCH_CAPABILITIES) });
    this.waiters = vm.kernel.scheduler.createWaitQueue();
    this.runAddress = runAddress;
    this.run = new RunPage(vm.kernel.memory.bytes(runAddress, VCPU_MMAP_SIZE_BYTES));
    if (vm.irqchip !== undefined) {
      this.lapic = vm.fabric.createLapic(id, isBootCpu, {
        guestTsc: () => guestTsc(this),
        guestTscKhz: () => vm.tscKhz,
        kick: () => this.kick(),
        requested: (vector) => this.statistics.interruptRequested(vector),
        nmi: () => {
          this.queue.raiseNmi();
          this.kick();
        },
      });
      if (!isBootCpu) this.mpState = MpState.KVM_MP_STATE_UNINITIALIZED;
    }
  }

  // Registers
  gpr(index: number): bigint {
    return index === Gpr.RSP ? this.vm.vendor.readRsp(this) : this.gprs[index]!;
  }
  setGpr(index: number, value: bigint): void {
    if (index === Gpr.RSP) this.vm.vendor.writeRsp(this, value);
    else this.gprs[index] = value;
  }
  gpr32(index: number): number {
    return this.#gprHalves[2 * index]!;
  }
  setGpr32(index: number, value: number): void {
    this.#gprHalves[2 * index] = value;
    this.#gprHalves[2 * index + 1] = 0;
  }
  get rip(): bigint {
    return this.vm.vendor.readRip(this);
  }
  set rip(value: bigint) {
    this.vm.vendor.writeRip(this, value);
  }
  get rflags(): bigint {
    return this.vm.vendor.readRflags(this);
  }
  set rflags(value: bigint) {
    this.vm.vendor.writeRflags(this, value);
  }
  segment(register: number): SegmentState {
    return this.vm.vendor.readSegment(this, register);
  }
  setSegment(register: number, state: SegmentState): void {
    this.vm.vendor.writeSegment(this, register, state);
  }
  get gdtr(): DescriptorTableState {
    return this.vm.vendor.readTable(this, "gdtr");
  }
  set gdtr(state: DescriptorTableState) {
    this.vm.vendor.writeTable(this, "gdtr", state);
  }
  get idtr(): DescriptorTableState {
    return this.vm.vendor.readTable(this, "idtr");
  }
  set idtr(state: DescriptorTableState) {
    this.vm.vendor.writeTable(this, "idtr", state);
  }
  get cr0(): bigint {
    return this.vm.vendor.readCr0(this);
  }
  set cr0(value: bigint) {
    this.vm.vendor.writeCr0(this, value);
  }
  get cr2(): bigint {
    return this.loaded ? this.vm.kernel.cpu.cr2 : this.savedCr2;
  }
  set cr2(value: bigint) {
    if (this.loaded) this.vm.kernel.cpu.cr2 = value;
    else this.savedCr2 = value;
  }
  get cr3(): bigint {
    return this.vm.vendor.readCr3(this);
  }
  set cr3(value: bigint) {
    this.vm.vendor.writeCr3(this, value);
  }
  get cr4(): bigint {
    return this.vm.vendor.readCr4(this);
  }
  set cr4(value: bigint) {
    this.vm.vendor.writeCr4(this, value);
  }
  get efer(): bigint {
    return this.vm.vendor.readEfer(this);
  }
  set efer(value: bigint) {
    this.vm.vendor.writeEfer(this, value);
  }
  get xcr0(): bigint {
    return this.loaded ? this.vm.kernel.cpu.xcr0 : this.savedXcr0;
  }
  set xcr0(value: bigint) {
    if (this.loaded) this.vm.kernel.cpu.xcr0 = value;
    else this.savedXcr0 = value;
  }
  get pdptrs(): readonly bigint[] {
    return this.vm.vendor.readPdptrs(this);
  }
  set pdptrs(values: readonly bigint[]) {
    this.vm.vendor.writePdptrs(this, values);
  }
  debugRegister(index: number): bigint {
    if (index === 7) return this.vm.vendor.readDr7(this);
    return this.loaded ? this.vm.kernel.cpu.readDr(index) : this.drs[index]!;
  }
  setDebugRegister(index: number, value: bigint): void {
    if (index === 7) this.vm.vendor.writeDr7(this, value);
    else if (this.loaded) this.vm.kernel.cpu.writeDr(index, value);
    else this.drs[index] = value;
  }
  xsave(): Uint8Array {
    if (this.loaded) this.vm.kernel.cpu.xsave(this.fpu);
    return this.fpu.slice();
  }
  xrstor(image: Uint8Array): void {
    this.fpu.set(image);
    if (this.loaded) this.vm.kernel.cpu.xrstor(this.fpu);
  }

  hardwareMsr(index: number): bigint | undefined {
    const slot = this.vm.module.userReturnMsrs.indexOf(index);
    if (slot >= 0) return this.userReturn[slot];
    const inStructure = this.vm.vendor.readMsr(this, index);
    if (inStructure !== undefined || index !== Msr.IA32_KERNEL_GS_BASE) return inStructure;
    return this.loaded ? this.vm.kernel.cpu.rdmsr(index) : this.savedKernelGsBase;
  }
  setHardwareMsr(index: number, value: bigint): boolean {
    const slot = this.vm.module.userReturnMsrs.indexOf(index);
    if (slot >= 0) {
      if (this.loaded && !this.vm.module.setUserReturnMsr(slot, value)) return false;
      this.userReturn[slot] = value;
      return true;
    }
    const inStructure = this.vm.vendor.writeMsr(this, index, value);
    if (inStructure !== undefined || index !== Msr.IA32_KERNEL_GS_BASE) return inStructure ?? false;
    if (this.loaded) return this.vm.kernel.cpu.wrmsr(index, value);
    this.savedKernelGsBase = value;
    return true;
  }

  get tscOffset(): bigint {
    return this.#tscOffset;
  }
  set tscOffset(value: bigint) {
    this.#tscOffset = value;
    this.vm.vendor.writeTscOffset(this, value);
  }

  // Events
  get interruptShadow(): number {
    return this.vm.vendor.readInterruptShadow(this);
  }
  set interruptShadow(value: number) {
    this.vm.vendor.writeInterruptShadow(this, value);
  }
  get nmiMasked(): boolean {
    return this.vm.vendor.readNmiMasked(this);
  }
  set nmiMasked(value: boolean) {
    this.vm.vendor.writeNmiMasked(this, value);
  }
  get pendingDebug(): bigint {
    return this.vm.vendor.readPendingDebug(this);
  }
  set pendingDebug(value: bigint) {
    this.vm.vendor.writePendingDebug(this, value);
  }
  events(): EventState {
    return this.queue.snapshot();
  }
  setEvents(state: EventState): void {
    this.queue.assign(state);
  }
  queueException(vector: number, errorCode?: number, payload?: bigint): void {
    this.queue.raise(vector, errorCode, payload);
  }
  interceptDebug(wanted: DebugIntercepts): void {
    this.vm.vendor.interceptDebug(this, wanted);
  }
  skip(length: number): void {
    this.vm.vendor.skip(this, length);
  }

  requestClockUpdate(): void {
    this.clockUpdateRequested = true;
  }
  requestTlbFlush(): void {
    this.tlbFlushRequested = true;
  }
  kick(): void {
    this.statistics.kicked();
    this.waiters.wake();
  }
  cpuidChanged(): void {
    const ecx = findCpuid(this.cpuid, 1, 0)?.ecx ?? 0;
    this.lapic?.setFeatures({ x2apic: (ecx & (1 << 21)) !== 0, tscDeadline: (ecx & (1 << 24)) !== 0 });
    this.vm.vendor.cpuidChanged(this);
  }
  reset(kind: "power-on" | "init"): void {
    this.queue.clearAll();
    this.pendingPort = undefined;
    this.pendingMsr = undefined;
    this.emulator.clear();
    resetRegisters(this, kind);
    this.lapic?.reset(kind);
    if (kind === "power-on") this.msrs.reset();
    this.requestTlbFlush();
  }

  runLoop(task: Task): number | Promise<number> {
    return runVcpu(this, task);
  }

  /** Off the CPU, and without a timer: nothing happens to it by itself any more. */
  detach(): void {
    this.lapic?.dispose();
    this.vm.vendor.put(this);
  }

  /** Takes the vCPU apart; its run pages stay with whoever owns them now when it has moved to another module. */
  dispose(moved: boolean): void {
    this.vm.vendor.freeVcpu(this);
    if (!moved) this.vm.kernel.memory.freePages(this.runAddress, VCPU_MMAP_SIZE_BYTES / 4096);
  }
}
