/** A vCPU of version 2: register cache over the control structure, hardware context, events. */
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
  Msr,
  type MsrStore,
  type PendingMsr,
  type PendingPort,
  type PvState,
  Rflags,
  RunPage,
  resetRegisters,
  type SegmentState,
  type SignalMask,
  VcpuCounters,
} from "@mkvm/kvm-core";
import { HaltPolling } from "./halt-polling.ts";
import { HardwareContext } from "./hardware-context.ts";
import { PendingEvents } from "./pending-events.ts";
import { Register, RegisterCache } from "./register-cache.ts";
import { RunLoop } from "./run-loop.ts";
import type { Vm } from "./vm.ts";

/** Work to be done before the next entry. */
export const Request = { clockUpdate: 1 << 0, tlbFlush: 1 << 1 } as const;

const SINGLE_STEP = 1n << 14n;
const TF = Number(Rflags.TF);
const IF = Number(Rflags.IF);
const DR7 = 7;

export class Vcpu implements ManagedVcpu {
  readonly vm: Vm;
  readonly id: number;
  readonly runAddress: PhysicalAddress;
  readonly run: RunPage;
  readonly lapic: Lapic | undefined;
  readonly msrs: MsrStore;
  readonly emulator = createMmioEmulator();
  readonly statistics: VcpuCounters;
  readonly registers: RegisterCache;
  readonly hardware: HardwareContext;
  readonly pending = new PendingEvents();
  readonly halt: HaltPolling;
  readonly waiters: WaitQueue;
  readonly #loop: RunLoop;
  requests = 0;
  /** What the vendor's operations keep with the vCPU. */
  vendorState: object | undefined;

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

  constructor(vm: Vm, id: number, runAddress: PhysicalAddress) {
    this.vm = vm;
    this.id = id;
    this.statistics = new VcpuCounters(vm.process.pid, id, vm.clock, vm.module.parameters.exitLatency);
    this.msrs = createMsrStore({ archCapabilities: vm.kernel.cpu.rdmsr(Msr.IA32_ARCH_CAPABILITIES) });
    this.runAddress = runAddress;
    this.run = new RunPage(vm.kernel.memory.bytes(runAddress, VCPU_MMAP_SIZE_BYTES));
    const { vendor } = vm;
    this.registers = new RegisterCache(
      {
        fetch: (cache, register) => vendor.fetch(this, cache, register),
        store: (cache, register) => vendor.store(this, cache, register),
      },
      vendor.keptRegisters,
    );
    this.hardware = new HardwareContext(vm.kernel.cpu, {
      msrs: vm.module.userReturnMsrs,
      set: (index, value) => vm.module.setUserReturnMsr(index, value),
    });
    this.waiters = vm.kernel.scheduler.createWaitQueue();
    this.halt = new HaltPolling(vm.kernel, vm.module.parameters.haltPollNs, this.statistics);
    this.#loop = new RunLoop(this);
    const isBootCpu = id === vm.settings.bootCpuId;
    this.userApicBase = 0xfee0_0800n | (isBootCpu ? 0x100n : 0n);
    if (vm.irqchip === undefined) return;
    this.lapic = vm.fabric.createLapic(
      id,
      isBootCpu,
      {
        guestTsc: () => guestTsc(this),
        guestTscKhz: () => vm.tscKhz,
        kick: () => this.kick(),
        requested: (vector) => this.statistics.interruptRequested(vector),
        nmi: () => {
          this.pending.raiseNmi();
          this.kick();
        },
      },
      vendor.apicRegisters(this),
    );
    if (!isBootCpu) this.mpState = MpState.KVM_MP_STATE_UNINITIALIZED;
  }

  // Registers
  gpr(index: number): bigint {
    return index === Gpr.RSP ? this.registers.word(Register.rsp) : this.hardware.gpr(index);
  }
  setGpr(index: number, value: bigint): void {
    if (index === Gpr.RSP) this.registers.setWord(Register.rsp, value);
    else this.hardware.setGpr(index, value);
  }
  gpr32(index: number): number {
    return this.hardware.gpr32(index);
  }
  setGpr32(index: number, value: number): void {
    this.hardware.setGpr32(index, value);
  }
  get rip(): bigint {
    return this.registers.word(Register.rip);
  }
  set rip(value: bigint) {
    this.registers.setWord(Register.rip, value);
  }
  get rflags(): bigint {
    return this.registers.word(Register.rflags);
  }
  set rflags(value: bigint) {
    this.registers.setWord(Register.rflags, value);
  }
  segment(register: number): SegmentState {
    return this.registers.segment(register);
  }
  setSegment(register: number, state: SegmentState): void {
    this.registers.setSegment(register, state);
  }
  get gdtr(): DescriptorTableState {
    return this.registers.table("gdtr");
  }
  set gdtr(state: DescriptorTableState) {
    this.registers.setTable("gdtr", state);
  }
  get idtr(): DescriptorTableState {
    return this.registers.table("idtr");
  }
  set idtr(state: DescriptorTableState) {
    this.registers.setTable("idtr", state);
  }
  get cr0(): bigint {
    return this.registers.word(Register.cr0);
  }
  set cr0(value: bigint) {
    this.registers.setWord(Register.cr0, value);
  }
  get cr2(): bigint {
    return this.hardware.cr2;
  }
  set cr2(value: bigint) {
    this.hardware.cr2 = value;
  }
  get cr3(): bigint {
    return this.registers.word(Register.cr3);
  }
  set cr3(value: bigint) {
    this.registers.setWord(Register.cr3, value);
  }
  get cr4(): bigint {
    return this.registers.word(Register.cr4);
  }
  set cr4(value: bigint) {
    this.registers.setWord(Register.cr4, value);
  }
  get efer(): bigint {
    return this.registers.word(Register.efer);
  }
  set efer(value: bigint) {
    this.registers.setWord(Register.efer, value);
    this.vm.vendor.longModeChanged(this.registers);
  }
  get xcr0(): bigint {
    return this.hardware.xcr0;
  }
  set xcr0(value: bigint) {
    this.hardware.xcr0 = value;
  }
  get pdptrs(): readonly bigint[] {
    return this.registers.pageDirectoryPointers();
  }
  set pdptrs(values: readonly bigint[]) {
    this.registers.setPageDirectoryPointers(values);
  }
  debugRegister(index: number): bigint {
    return index === DR7 ? this.registers.word(Register.dr7) : this.hardware.debugRegister(index);
  }
  setDebugRegister(index: number, value: bigint): void {
    if (index === DR7) this.registers.setWord(Register.dr7, value);
    else this.hardware.setDebugRegister(index, value);
  }
  xsave(): Uint8Array {
    return this.hardware.xsave();
  }
  xrstor(image: Uint8Array): void {
    this.hardware.xrstor(image);
  }
  hardwareMsr(index: number): bigint | undefined {
    return this.vm.vendor.msr(this, index) ?? this.hardware.msr(index);
  }
  setHardwareMsr(index: number, value: bigint): boolean {
    return this.vm.vendor.setMsr(this, index, value) ?? this.hardware.setMsr(index, value) ?? false;
  }
  get tscOffset(): bigint {
    return this.registers.word(Register.tscOffset);
  }
  set tscOffset(value: bigint) {
    this.registers.setWord(Register.tscOffset, value);
  }

  // Events
  get interruptShadow(): number {
    return this.vm.vendor.interruptShadow(this.registers.low(Register.interruptibility));
  }
  set interruptShadow(shadow: number) {
    const before = this.registers.low(Register.interruptibility);
    const after = this.vm.vendor.withInterruptShadow(before, shadow);
    if (after !== before) this.registers.setLow(Register.interruptibility, after);
  }
  get nmiMasked(): boolean {
    return this.vm.vendor.nmiMasked(this.registers.low(Register.interruptibility));
  }
  set nmiMasked(masked: boolean) {
    const before = this.registers.low(Register.interruptibility);
    const after = this.vm.vendor.withNmiMasked(before, masked);
    if (after !== before) this.registers.setLow(Register.interruptibility, after);
  }
  get pendingDebug(): bigint {
    return this.registers.word(Register.pendingDebug);
  }
  set pendingDebug(value: bigint) {
    this.registers.setWord(Register.pendingDebug, value);
  }
  /** An external interrupt could be delivered at this instruction. */
  get interruptAllowed(): boolean {
    return (this.registers.low(Register.rflags) & IF) !== 0 && this.interruptShadow === 0;
  }
  get nmiAllowed(): boolean {
    return this.interruptShadow === 0 && !this.nmiMasked;
  }
  events(): EventState {
    return this.pending.toState();
  }
  setEvents(state: EventState): void {
    this.pending.fromState(state);
  }
  queueException(vector: number, errorCode?: number, payload?: bigint): void {
    this.pending.raise(vector, errorCode, payload);
  }
  interceptDebug(wanted: DebugIntercepts): void {
    this.vm.vendor.interceptDebug(this, wanted);
  }
  skip(length: number): void {
    this.registers.advance(Register.rip, length);
    this.interruptShadow = 0;
    if ((this.registers.low(Register.rflags) & TF) !== 0) this.pendingDebug |= SINGLE_STEP;
  }

  requestClockUpdate(): void {
    this.requests |= Request.clockUpdate;
  }
  get clockUpdateRequested(): boolean {
    return (this.requests & Request.clockUpdate) !== 0;
  }
  requestTlbFlush(): void {
    this.requests |= Request.tlbFlush;
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
    this.pending.clear();
    this.pendingPort = undefined;
    this.pendingMsr = undefined;
    this.emulator.clear();
    resetRegisters(this, kind);
    this.lapic?.reset(kind);
    if (kind === "power-on") this.msrs.reset();
    this.requestTlbFlush();
  }
  runLoop(task: Task): number | Promise<number> {
    return this.#loop.run(task);
  }

  /** Off the CPU, and without a timer: nothing happens to it by itself any more. */
  detach(): void {
    this.lapic?.dispose();
    this.vm.vendor.leaveCpu(this);
  }

  /** `moved`: the run pages belong to another module now. */
  dispose(moved: boolean): void {
    this.vm.vendor.freeVcpu(this);
    if (!moved) this.vm.kernel.memory.freePages(this.runAddress, VCPU_MMAP_SIZE_BYTES / 4096);
  }
}
