/** The vendor operations on SVM. The VMCB is memory, read whenever somebody asks. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import {
  type DebugIntercepts,
  type DescriptorTableState,
  type ExceptionEvent,
  type ExitOutcome,
  Gpr,
  handleSvmExit,
  interceptByCpuid,
  pauseExits,
  Rflags,
  readPdptrs,
  type SegmentState,
  type SvmCapabilities,
  type SvmExitHost,
  SvmStructures,
  type SvmVcpu,
  usesPdptrs,
  VcpuStat,
  Vector,
  VmcbControl,
  VmcbSave,
} from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import type { EntryFormat } from "../mmu/entry-format.ts";
import { nptFormat } from "../mmu/npt-entry.ts";
import type { Vcpu } from "../vcpu.ts";
import type { VendorOperations } from "../vendor-operations.ts";
import type { Vm } from "../vm.ts";

const SINGLE_STEP = 1n << 14n;
/** B0 to B3, BD, BS, BT. */
const DR6_CAUSES = 0xe00fn;
const NO_PDPTRS: readonly bigint[] = [0n, 0n, 0n, 0n];

interface VcpuSvm {
  readonly svm: SvmVcpu;
  readonly exitHost: SvmExitHost;
  /** DR6 bits of a trap that an instruction outside guest mode owes: SVM has no field for it, so it becomes #DB before the next entry. */
  pendingDebug: bigint;
  hostXcr0: bigint;
}
const stateOf = (vcpu: Vcpu): VcpuSvm => vcpu.vendorState as VcpuSvm;
const svmOf = (vcpu: Vcpu): SvmVcpu => stateOf(vcpu).svm;

export class SvmOperations implements VendorOperations {
  readonly name = "svm";
  readonly format: EntryFormat;
  readonly #module: Module;
  readonly #cpu: LogicalCpu;
  readonly #structures: SvmStructures;
  #onCpu: Vcpu | undefined;

  constructor(module: Module, capabilities: SvmCapabilities) {
    this.#module = module;
    this.#cpu = module.kernel.cpu;
    this.format = nptFormat(capabilities.nestedLevels);
    this.#structures = new SvmStructures(module.kernel, module.owner, capabilities);
    module.kernel.vac.onEmergency(module.owner, () => {
      if (this.#onCpu !== undefined) svmOf(this.#onCpu).emergency();
    });
  }

  createVm(vm: Vm): number {
    return this.#structures.createVm(vm);
  }
  destroyVm(vm: Vm): void {
    this.#structures.destroyVm(vm);
  }

  msrFilterChanged(vm: Vm): void {
    this.#structures.msrFilterChanged(vm);
  }

  createVcpu(vcpu: Vcpu): number {
    const svm = this.#structures.createVcpu(vcpu.vm);
    if (typeof svm === "number") return svm;
    vcpu.vendorState = {
      svm,
      exitHost: this.#exitHost(vcpu),
      pendingDebug: 0n,
      hostXcr0: 1n,
    } satisfies VcpuSvm;
    this.cpuidChanged(vcpu);
    return 0;
  }
  freeVcpu(vcpu: Vcpu): void {
    if (vcpu.vendorState === undefined) return;
    if (vcpu.loaded) this.put(vcpu);
    this.#structures.freeVcpu(stateOf(vcpu).svm);
    vcpu.vendorState = undefined;
  }

  cpuidChanged(vcpu: Vcpu): void {
    interceptByCpuid(svmOf(vcpu).vmcb, vcpu.cpuid);
  }

  /** A VMCB is memory: there is no current one. */
  select(_vcpu: Vcpu): void {}

  load(vcpu: Vcpu): void {
    const state = stateOf(vcpu);
    if (state.pendingDebug !== 0n) {
      const trap = state.pendingDebug;
      state.pendingDebug = 0n;
      vcpu.queueException(Vector.DB, undefined, trap & DR6_CAUSES);
    }
    if (vcpu.loaded) return;
    const cpu = this.#cpu;
    this.#module.kernel.vac.setRunningVcpu(this.#module.owner, vcpu.id + 1);
    state.svm.load();
    state.svm.watchPauses(pauseExits(vcpu.vm));
    for (let index = 0; index < 4; index++) cpu.writeDr(index, vcpu.drs[index]!);
    cpu.writeDr(6, vcpu.drs[6]!);
    cpu.xrstor(vcpu.fpu);
    cpu.cr2 = vcpu.savedCr2;
    state.hostXcr0 = cpu.xcr0;
    cpu.xcr0 = vcpu.savedXcr0;
    for (let slot = 0; slot < vcpu.userReturn.length; slot++) this.#module.setUserReturnMsr(slot, vcpu.userReturn[slot]!);
    vcpu.loaded = true;
    this.#onCpu = vcpu;
    vcpu.statistics.loaded(cpu.retiredInstructions());
  }
  put(vcpu: Vcpu): void {
    if (!vcpu.loaded) return;
    const cpu = this.#cpu;
    const state = stateOf(vcpu);
    for (let index = 0; index < 4; index++) vcpu.drs[index] = cpu.readDr(index);
    vcpu.drs[6] = cpu.readDr(6);
    cpu.xsave(vcpu.fpu);
    vcpu.savedCr2 = cpu.cr2;
    vcpu.savedXcr0 = cpu.xcr0;
    cpu.xcr0 = state.hostXcr0;
    state.svm.put();
    vcpu.loaded = false;
    this.#onCpu = undefined;
    vcpu.statistics.put(cpu.retiredInstructions());
    this.#module.kernel.vac.clearRunningVcpu(this.#module.owner);
  }

  readRip(vcpu: Vcpu): bigint {
    return svmOf(vcpu).vmcb.quad(VmcbSave.RIP);
  }
  writeRip(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbSave.RIP, BigInt.asUintN(64, value));
  }
  readRsp(vcpu: Vcpu): bigint {
    return svmOf(vcpu).vmcb.quad(VmcbSave.RSP);
  }
  writeRsp(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbSave.RSP, value);
  }
  readRflags(vcpu: Vcpu): bigint {
    return svmOf(vcpu).rflags;
  }
  writeRflags(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).rflags = value;
  }
  readSegment(vcpu: Vcpu, register: number): SegmentState {
    return svmOf(vcpu).segment(register);
  }
  writeSegment(vcpu: Vcpu, register: number, state: SegmentState): void {
    svmOf(vcpu).setSegment(register, state);
  }
  readTable(vcpu: Vcpu, table: "gdtr" | "idtr"): DescriptorTableState {
    return svmOf(vcpu).table(table);
  }
  writeTable(vcpu: Vcpu, table: "gdtr" | "idtr", state: DescriptorTableState): void {
    svmOf(vcpu).setTable(table, state);
  }
  readCr0(vcpu: Vcpu): bigint {
    return svmOf(vcpu).vmcb.quad(VmcbSave.CR0);
  }
  writeCr0(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbSave.CR0, value);
  }
  readCr3(vcpu: Vcpu): bigint {
    return svmOf(vcpu).vmcb.quad(VmcbSave.CR3);
  }
  writeCr3(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbSave.CR3, value);
  }
  readCr4(vcpu: Vcpu): bigint {
    return svmOf(vcpu).vmcb.quad(VmcbSave.CR4);
  }
  writeCr4(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbSave.CR4, value);
  }
  readEfer(vcpu: Vcpu): bigint {
    return svmOf(vcpu).efer;
  }
  writeEfer(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).efer = value;
  }
  /** VMRUN reads the entries from memory. */
  readPdptrs(vcpu: Vcpu): readonly bigint[] {
    return (usesPdptrs(vcpu) ? readPdptrs(vcpu, vcpu.cr3) : undefined) ?? NO_PDPTRS;
  }
  writePdptrs(_vcpu: Vcpu, _values: readonly bigint[]): void {}
  readDr7(vcpu: Vcpu): bigint {
    return svmOf(vcpu).vmcb.quad(VmcbSave.DR7);
  }
  writeDr7(vcpu: Vcpu, value: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbSave.DR7, value);
  }
  readMsr(vcpu: Vcpu, index: number): bigint | undefined {
    return svmOf(vcpu).msr(index);
  }
  writeMsr(vcpu: Vcpu, index: number, value: bigint): boolean | undefined {
    return svmOf(vcpu).setMsr(index, value);
  }
  writeTscOffset(vcpu: Vcpu, offset: bigint): void {
    svmOf(vcpu).vmcb.setQuad(VmcbControl.TSC_OFFSET, offset);
  }

  skip(vcpu: Vcpu, length: number): void {
    const { svm } = stateOf(vcpu);
    this.writeRip(vcpu, this.readRip(vcpu) + BigInt(length));
    svm.interruptShadow = 0;
    if ((svm.rflags & Rflags.TF) !== 0n) stateOf(vcpu).pendingDebug |= SINGLE_STEP;
  }
  readInterruptShadow(vcpu: Vcpu): number {
    return svmOf(vcpu).interruptShadow;
  }
  writeInterruptShadow(vcpu: Vcpu, shadow: number): void {
    svmOf(vcpu).interruptShadow = shadow;
  }
  readNmiMasked(vcpu: Vcpu): boolean {
    return svmOf(vcpu).nmi.masked;
  }
  writeNmiMasked(vcpu: Vcpu, masked: boolean): void {
    svmOf(vcpu).nmi.masked = masked;
  }
  readPendingDebug(vcpu: Vcpu): bigint {
    return stateOf(vcpu).pendingDebug;
  }
  writePendingDebug(vcpu: Vcpu, value: bigint): void {
    stateOf(vcpu).pendingDebug = value;
  }

  interceptDebug(vcpu: Vcpu, wanted: DebugIntercepts): void {
    svmOf(vcpu).interceptDebug(wanted);
  }

  interruptAllowed(vcpu: Vcpu): boolean {
    return svmOf(vcpu).interruptAllowed;
  }
  nmiAllowed(vcpu: Vcpu): boolean {
    return svmOf(vcpu).nmiAllowed;
  }
  injectException(vcpu: Vcpu, { vector, errorCode, software }: ExceptionEvent): void {
    const { instructionLength } = vcpu.queue;
    svmOf(vcpu).inject({ kind: software ? "software-exception" : "exception", vector, errorCode, instructionLength });
  }
  injectInterrupt(vcpu: Vcpu, vector: number, software: boolean): void {
    vcpu.statistics.words[VcpuStat.irq_injections]!++;
    const kind = software ? "software-interrupt" : "interrupt";
    svmOf(vcpu).inject({ kind, vector, errorCode: undefined, instructionLength: vcpu.queue.instructionLength });
  }
  injectNmi(vcpu: Vcpu): void {
    vcpu.statistics.words[VcpuStat.nmi_injections]!++;
    svmOf(vcpu).inject({ kind: "nmi", vector: Vector.NMI, errorCode: undefined, instructionLength: 0 });
  }
  openInterruptWindow(vcpu: Vcpu): void {
    svmOf(vcpu).watchInterruptWindow(true);
  }
  openNmiWindow(vcpu: Vcpu): void {
    svmOf(vcpu).nmi.watchWindow();
  }

  enter(vcpu: Vcpu): void {
    const cpu = this.#cpu;
    const { svm } = stateOf(vcpu);
    cpu.loadGprs(vcpu.gprs);
    cpu.setGpr(Gpr.RAX, vcpu.gprs[Gpr.RAX]!);
    const entered = svm.enter();
    cpu.saveGprs(vcpu.gprs);
    vcpu.gprs[Gpr.RAX] = cpu.gpr(Gpr.RAX);
    // A VMCB that is refused has delivered nothing: what was to be injected stays queued as it is
    if (!entered) return;
    const { queue } = vcpu;
    queue.clearDelivered();
    const event = svm.cutShort();
    if (event === undefined) return;
    if (event.kind === "nmi") queue.nmiInjected = true;
    else if (event.kind === "interrupt") queue.interrupt = { vector: event.vector, software: false };
    else queue.requeueException(event.vector, event.errorCode, event.instructionLength !== 0, event.instructionLength);
  }
  handleExit(vcpu: Vcpu): ExitOutcome {
    const { svm, exitHost } = stateOf(vcpu);
    return handleSvmExit(vcpu, svm.exit, exitHost);
  }
  #exitHost(vcpu: Vcpu): SvmExitHost {
    return {
      cpuId: this.#cpu.id,
      memoryFault: (gpa, write) => vcpu.vm.mmu.fault(gpa, write),
      closeInterruptWindow: () => svmOf(vcpu).watchInterruptWindow(false),
      interruptReturn: () => svmOf(vcpu).nmi.interruptReturn(),
      stepped: () => svmOf(vcpu).nmi.trapIsGuests,
      hostInterrupt: () => this.#module.kernel.scheduler.handleInterrupts(),
      dump: () => svmOf(vcpu).vmcb.dump(),
    };
  }
  flushGuestTlb(vcpu: Vcpu): void {
    vcpu.statistics.words[VcpuStat.tlb_flush]!++;
    svmOf(vcpu).requestFlush();
  }
  /** None of the VM's vCPUs is in the guest now: each flushes as it enters. */
  flushSecondLevel(vm: Vm): void {
    for (const vcpu of vm.vcpus()) svmOf(vcpu).requestFlush();
  }
}
