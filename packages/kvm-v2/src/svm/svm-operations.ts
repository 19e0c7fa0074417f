/** The vendor operations on SVM. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import {
  type DebugIntercepts,
  type ExitOutcome,
  handleSvmExit,
  interceptByCpuid,
  pauseExits,
  SegmentRegister,
  type SvmCapabilities,
  type SvmExitHost,
  SvmStructures,
  type SvmVcpu,
  VcpuStat,
  Vector,
} from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import { npt } from "../mmu/npt-entry.ts";
import type { TdpFormat } from "../mmu/tdp-entry.ts";
import { EventFlag } from "../pending-events.ts";
import { Register, type RegisterCache, type RegisterNumber } from "../register-cache.ts";
import type { Vcpu } from "../vcpu.ts";
import type { Injection, VendorOperations } from "../vendor-operations.ts";
import type { Vm } from "../vm.ts";
import { fetchRegister, Interruptibility, storeRegister } from "./register-fields.ts";

/** DR6: B0 to B3, BD, BS, BT. */
const DR6_CAUSES = 0xe00fn;
/** SVM has one shadow: both bits of the uapi. */
const BOTH_SHADOWS = 3;
const BASE_SEGMENTS: ReadonlyMap<number, number> = new Map([
  [0xc000_0100, SegmentRegister.FS],
  [0xc000_0101, SegmentRegister.GS],
]);

interface SvmState {
  readonly svm: SvmVcpu;
  readonly host: SvmExitHost;
}
const stateOf = (vcpu: Vcpu): SvmState => vcpu.vendorState as SvmState;

export class SvmOperations implements VendorOperations {
  readonly name = "svm";
  readonly format: TdpFormat;
  /** EFER.LMA follows CR0.PG, which the guest sets without an exit. */
  readonly keptRegisters = 1 << Register.tscOffset;
  readonly #module: Module;
  readonly #cpu: LogicalCpu;
  readonly #structures: SvmStructures;
  #onCpu: SvmVcpu | undefined;

  constructor(module: Module, capabilities: SvmCapabilities) {
    this.#module = module;
    this.#cpu = module.kernel.cpu;
    this.format = npt(capabilities.nestedLevels);
    this.#structures = new SvmStructures(module.kernel, module.owner, capabilities);
    module.kernel.vac.onEmergency(module.owner, () => this.#onCpu?.emergency());
  }

  apicRegisters(_vcpu: Vcpu): Uint8Array | undefined {
    return undefined;
  }
  deliversApicInterrupts(_vcpu: Vcpu): boolean {
    return false;
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
    vcpu.vendorState = { svm, host: this.#exitHost(vcpu, svm) } satisfies SvmState;
    this.cpuidChanged(vcpu);
    return 0;
  }
  #exitHost(vcpu: Vcpu, svm: SvmVcpu): SvmExitHost {
    return {
      cpuId: this.#cpu.id,
      memoryFault: (gpa, write) => vcpu.vm.mmu.fault(gpa, write),
      // The windows are set anew for each entry
      closeInterruptWindow: () => undefined,
      interruptReturn: () => svm.nmi.interruptReturn(),
      stepped: () => svm.nmi.trapIsGuests,
      hostInterrupt: () => this.#module.kernel.scheduler.handleInterrupts(),
      dump: () => svm.vmcb.dump(),
    };
  }
  freeVcpu(vcpu: Vcpu): void {
    if (vcpu.vendorState === undefined) return;
    this.leaveCpu(vcpu);
    this.#structures.freeVcpu(stateOf(vcpu).svm);
    vcpu.vendorState = undefined;
  }

  cpuidChanged(vcpu: Vcpu): void {
    interceptByCpuid(stateOf(vcpu).svm.vmcb, vcpu.cpuid);
  }

  fetch(vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void {
    fetchRegister(stateOf(vcpu).svm, vcpu, cache, register);
  }
  store(vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void {
    storeRegister(stateOf(vcpu).svm, cache, register);
  }
  /** VMRUN looks at EFER itself. */
  longModeChanged(_cache: RegisterCache): void {}
  msr(vcpu: Vcpu, index: number): bigint | undefined {
    const segment = BASE_SEGMENTS.get(index);
    return segment === undefined ? stateOf(vcpu).svm.msr(index) : vcpu.segment(segment).base;
  }
  setMsr(vcpu: Vcpu, index: number, value: bigint): boolean | undefined {
    const segment = BASE_SEGMENTS.get(index);
    if (segment === undefined) return stateOf(vcpu).svm.setMsr(index, value);
    vcpu.setSegment(segment, { ...vcpu.segment(segment), base: value });
    return true;
  }

  interruptShadow(interruptibility: number): number {
    return (interruptibility & Interruptibility.shadow) !== 0 ? BOTH_SHADOWS : 0;
  }
  withInterruptShadow(interruptibility: number, shadow: number): number {
    return shadow === 0 ? interruptibility & ~Interruptibility.shadow : interruptibility | Interruptibility.shadow;
  }
  nmiMasked(interruptibility: number): boolean {
    return (interruptibility & Interruptibility.nmiMasked) !== 0;
  }
  withNmiMasked(interruptibility: number, masked: boolean): number {
    return masked ? interruptibility | Interruptibility.nmiMasked : interruptibility & ~Interruptibility.nmiMasked;
  }

  enterCpu(vcpu: Vcpu): void {
    const { pendingDebug } = vcpu;
    if (pendingDebug !== 0n) {
      vcpu.pendingDebug = 0n;
      vcpu.queueException(Vector.DB, undefined, pendingDebug & DR6_CAUSES);
    }
    if (vcpu.hardware.loaded) return;
    const { svm } = stateOf(vcpu);
    this.#module.kernel.vac.setRunningVcpu(this.#module.owner, vcpu.id + 1);
    svm.load();
    svm.watchPauses(pauseExits(vcpu.vm));
    this.#onCpu = svm;
    vcpu.hardware.load();
    vcpu.statistics.loaded(this.#cpu.retiredInstructions());
  }
  leaveCpu(vcpu: Vcpu): void {
    if (!vcpu.hardware.loaded) return;
    // First: VMSAVE takes KernelGSBase while it is the guest's
    stateOf(vcpu).svm.put();
    vcpu.hardware.put();
    this.#onCpu = undefined;
    vcpu.statistics.put(this.#cpu.retiredInstructions());
    this.#module.kernel.vac.clearRunningVcpu(this.#module.owner);
  }

  inject(vcpu: Vcpu, event: Injection): void {
    const { words } = vcpu.statistics;
    if (event.kind === "nmi") words[VcpuStat.nmi_injections]!++;
    else if (event.kind === "interrupt" || event.kind === "software-interrupt") words[VcpuStat.irq_injections]!++;
    // RIP, CR0 and the blocking of NMIs are the VMCB's to say
    vcpu.registers.flush();
    stateOf(vcpu).svm.inject(event);
    if (event.kind === "nmi") vcpu.registers.forget(Register.interruptibility);
  }
  interceptDebug(vcpu: Vcpu, wanted: DebugIntercepts): void {
    stateOf(vcpu).svm.interceptDebug(wanted);
  }
  watchWindows(vcpu: Vcpu, windows: { interrupt: boolean; nmi: boolean }): void {
    const { svm } = stateOf(vcpu);
    svm.watchInterruptWindow(windows.interrupt);
    if (!windows.nmi) return;
    vcpu.registers.flush();
    svm.nmi.watchWindow();
  }
  flushGuestTlb(vcpu: Vcpu): void {
    vcpu.statistics.words[VcpuStat.tlb_flush]!++;
    stateOf(vcpu).svm.requestFlush();
  }
  /** None of the VM's vCPUs is in the guest now: each flushes as it enters. */
  flushSecondLevel(vm: Vm): void {
    for (const vcpu of vm.vcpus()) stateOf(vcpu).svm.requestFlush();
  }

  enter(vcpu: Vcpu): void {
    const { svm } = stateOf(vcpu);
    vcpu.registers.flush();
    const entered = svm.enter();
    vcpu.registers.invalidate();
    // A VMCB that is refused has delivered nothing
    if (!entered) return;
    const { pending } = vcpu;
    pending.clearDelivered();
    const event = svm.cutShort();
    if (event === undefined) return;
    if (event.kind === "nmi") pending.flags |= EventFlag.nmiInjected;
    else if (event.kind === "interrupt") pending.requeueInterrupt(event.vector, false, 0);
    else pending.requeueException(event.vector, event.errorCode, event.instructionLength !== 0, event.instructionLength);
  }
  handleExit(vcpu: Vcpu): ExitOutcome {
    const { svm, host } = stateOf(vcpu);
    return handleSvmExit(vcpu, svm.exit, host);
  }
}
