/** The vendor operations on VMX. */

import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { Errno } from "@mkvm/kvm-abi";
import {
  type DebugIntercepts,
  dumpVmcs,
  type ExitOutcome,
  exceptionHasErrorCode,
  fillMsrBitmap,
  followCpuid,
  handleVmxExit,
  Interruptibility,
  InterruptionInfo,
  InterruptionType,
  InveptType,
  InvvpidType,
  Msr,
  PrimaryControl,
  pauseExits,
  SegmentRegister,
  setUpVmcs,
  VcpuStat,
  Vector,
  VmcsField,
  type VmxCapabilities,
  type VmxExitHost,
} from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import { EPT } from "../mmu/ept-entry.ts";
import { Register, type RegisterCache, type RegisterNumber } from "../register-cache.ts";
import type { Vcpu } from "../vcpu.ts";
import type { Injection, VendorOperations } from "../vendor-operations.ts";
import type { Vm } from "../vm.ts";
import { ApicVirtualization } from "./apic-virtualization.ts";
import { requeueCutShort } from "./event-completion.ts";
import { ExitCache } from "./exit-cache.ts";
import { ModificationLog } from "./modification-log.ts";
import { fetchRegister, settleTaskRegister, storeRegister } from "./register-fields.ts";

const SUCCEED = 0;
/** VM-instruction error "VMRESUME with non-launched VMCS". */
const NOT_LAUNCHED = 5;
const ONE_PAGE = 1;
const BOTH_WINDOWS = PrimaryControl.interruptWindowExiting | PrimaryControl.nmiWindowExiting;
const CR8_EXITING = PrimaryControl.cr8LoadExiting | PrimaryControl.cr8StoreExiting;
const RESET_PAT = 0x0007_0406_0007_0406n;

/** MSRs that are VMCS fields and not part of a segment. */
const MSR_FIELDS: ReadonlyMap<number, number> = new Map<number, number>([
  [Msr.IA32_SYSENTER_CS, VmcsField.GUEST_IA32_SYSENTER_CS],
  [Msr.IA32_SYSENTER_ESP, VmcsField.GUEST_IA32_SYSENTER_ESP],
  [Msr.IA32_SYSENTER_EIP, VmcsField.GUEST_IA32_SYSENTER_EIP],
  [Msr.IA32_PAT, VmcsField.GUEST_IA32_PAT],
  [Msr.IA32_DEBUGCTL, VmcsField.GUEST_IA32_DEBUGCTL],
]);
const BASE_MSRS: ReadonlyMap<number, number> = new Map<number, number>([
  [Msr.IA32_FS_BASE, SegmentRegister.FS],
  [Msr.IA32_GS_BASE, SegmentRegister.GS],
]);
const TYPES: Readonly<Record<Injection["kind"], number>> = {
  exception: InterruptionType.hardwareException,
  "software-exception": InterruptionType.softwareException,
  interrupt: InterruptionType.externalInterrupt,
  "software-interrupt": InterruptionType.softwareInterrupt,
  nmi: InterruptionType.nmi,
};

interface VmxState {
  readonly vmcs: Hpa;
  readonly vpid: number;
  readonly msrBitmap: Hpa;
  readonly exit: ExitCache;
  readonly host: VmxExitHost;
  launched: boolean;
  /** Primary controls as the VMCS has them. */
  primaryControls: number;
  readonly apic: ApicVirtualization | undefined;
  readonly log: ModificationLog | undefined;
}

const stateOf = (vcpu: Vcpu): VmxState => vcpu.vendorState as VmxState;

export class VmxOperations implements VendorOperations {
  readonly name = "vmx";
  readonly format = EPT;
  readonly keptRegisters = (1 << Register.efer) | (1 << Register.tscOffset);
  readonly #module: Module;
  readonly #cpu: LogicalCpu;
  readonly #capabilities: VmxCapabilities;
  #current: VmxState | undefined;
  /** Pages for the virtualization of local APICs. */
  readonly #accessPages = new Map<Vm, Hpa>();
  readonly #virtualApics = new Map<Vcpu, Hpa>();

  constructor(module: Module, capabilities: VmxCapabilities) {
    this.#module = module;
    this.#cpu = module.kernel.cpu;
    this.#capabilities = capabilities;
  }

  /** All that VMX needs is allocated with the vCPUs. */
  createVm(_vm: Vm): number {
    return 0;
  }
  destroyVm(vm: Vm): void {
    const page = this.#accessPages.get(vm);
    if (page !== undefined) vm.kernel.memory.freePages(page, ONE_PAGE);
    this.#accessPages.delete(vm);
  }

  msrFilterChanged(vm: Vm): void {
    for (const vcpu of vm.vcpus()) {
      const { apic, msrBitmap } = stateOf(vcpu);
      fillMsrBitmap(vm.kernel.memory.bytes(msrBitmap, 4096), vm.settings.msrFilter);
      apic?.passMsrs();
    }
  }

  apicRegisters(vcpu: Vcpu): Uint8Array | undefined {
    if (!this.#module.parameters.apicVirtualization) return undefined;
    const { vm } = vcpu;
    const { memory } = vm.kernel;
    // Without a page the vCPU goes without
    if (!this.#accessPages.has(vm)) {
      const access = memory.allocatePages(vm.process, ONE_PAGE);
      if (access < 0) return undefined;
      this.#accessPages.set(vm, access as Hpa);
    }
    const page = memory.allocatePages(vm.process, ONE_PAGE);
    if (page < 0) return undefined;
    this.#virtualApics.set(vcpu, page as Hpa);
    return memory.bytes(page, 4096);
  }
  deliversApicInterrupts(vcpu: Vcpu): boolean {
    return stateOf(vcpu).apic !== undefined;
  }
  #apicFor(vcpu: Vcpu, msrBitmap: Hpa): ApicVirtualization | undefined {
    const virtualApic = this.#virtualApics.get(vcpu);
    const access = this.#accessPages.get(vcpu.vm);
    if (vcpu.lapic === undefined || virtualApic === undefined || access === undefined) return undefined;
    const bitmap = vcpu.vm.kernel.memory.bytes(msrBitmap, 4096);
    return new ApicVirtualization(this.#cpu.vmx, vcpu, vcpu.lapic, { virtualApic, access, msrBitmap: bitmap });
  }

  createVcpu(vcpu: Vcpu): number {
    const { vm } = vcpu;
    const { memory, vac } = vm.kernel;
    const { owner } = this.#module;
    const vpid = vac.allocateVpid(owner);
    if (vpid === 0) return -Errno.ENOSPC;
    const vmcs = memory.allocatePages(vm.process, ONE_PAGE);
    const msrBitmap = vmcs < 0 ? vmcs : memory.allocatePages(vm.process, ONE_PAGE);
    const hasLog = this.#module.parameters.modificationLog;
    const log = msrBitmap < 0 || !hasLog ? msrBitmap : memory.allocatePages(vm.process, ONE_PAGE);
    if (log < 0) {
      if (vmcs >= 0) memory.freePages(vmcs, ONE_PAGE);
      if (msrBitmap >= 0) memory.freePages(msrBitmap, ONE_PAGE);
      vac.freeVpid(owner, vpid);
      return log;
    }
    fillMsrBitmap(memory.bytes(msrBitmap, 4096), vm.settings.msrFilter);
    const head = memory.bytes(vmcs, 4);
    new DataView(head.buffer, head.byteOffset, 4).setUint32(0, this.#capabilities.revision, true);
    const apic = this.#apicFor(vcpu, msrBitmap as Hpa);
    const state: VmxState = {
      vmcs: vmcs as Hpa,
      vpid,
      msrBitmap: msrBitmap as Hpa,
      exit: new ExitCache(this.#cpu.vmx),
      host: this.#exitHost(vcpu),
      launched: false,
      primaryControls: this.#capabilities.primary,
      apic,
      log: hasLog ? new ModificationLog(this.#cpu.vmx, vm, log as Hpa) : undefined,
    };
    vcpu.vendorState = state;
    vac.clearVmcs(owner, state.vmcs);
    this.#select(vcpu);
    setUpVmcs(this.#cpu, {
      capabilities: this.#capabilities,
      vpid,
      eptPointer: vm.mmu.rootPointer,
      msrBitmap: state.msrBitmap,
    });
    this.#cpu.vmx.vmwrite(VmcsField.GUEST_IA32_PAT, RESET_PAT);
    this.cpuidChanged(vcpu);
    state.log?.setUp();
    if (apic === undefined) return 0;
    apic.setUp(this.#cpu.vmx.vmread32(VmcsField.SECONDARY_PROCESSOR_CONTROLS));
    this.#setPrimaryControls(state, CR8_EXITING | PrimaryControl.tprShadow, PrimaryControl.tprShadow);
    return 0;
  }
  #exitHost(vcpu: Vcpu): VmxExitHost {
    return {
      cpuId: this.#cpu.id,
      memoryFault: (gpa, write) => {
        const own = stateOf(vcpu).apic?.accessPageAt(gpa);
        return own === undefined ? vcpu.vm.mmu.fault(gpa, write) : vcpu.vm.mmu.mapOwn(own.gfn, own.address);
      },
      // The windows are set anew for each entry
      closeInterruptWindow: () => undefined,
      closeNmiWindow: () => undefined,
      hostInterrupt: () => this.#module.kernel.scheduler.handleInterrupts(),
      hostNmi: () => this.#cpu.nmiHandler?.(),
      dump: () => dumpVmcs(this.#cpu),
    };
  }
  freeVcpu(vcpu: Vcpu): void {
    this.#freeControls(vcpu);
    const page = this.#virtualApics.get(vcpu);
    if (page !== undefined) vcpu.vm.kernel.memory.freePages(page, ONE_PAGE);
    this.#virtualApics.delete(vcpu);
  }
  #freeControls(vcpu: Vcpu): void {
    if (vcpu.vendorState === undefined) return;
    const state = stateOf(vcpu);
    this.leaveCpu(vcpu);
    const { memory, vac } = vcpu.vm.kernel;
    vac.clearVmcs(this.#module.owner, state.vmcs);
    vac.freeVpid(this.#module.owner, state.vpid);
    memory.freePages(state.vmcs, ONE_PAGE);
    memory.freePages(state.msrBitmap, ONE_PAGE);
    if (state.log !== undefined) memory.freePages(state.log.page, ONE_PAGE);
    vcpu.vendorState = undefined;
    if (this.#current === state) this.#current = undefined;
  }

  cpuidChanged(vcpu: Vcpu): void {
    this.#select(vcpu);
    const field = VmcsField.SECONDARY_PROCESSOR_CONTROLS;
    const { vmx } = this.#cpu;
    vmx.vmwrite(field, followCpuid(vmx.vmread32(field), vcpu.cpuid, this.#capabilities));
  }

  #select(vcpu: Vcpu): VmxState {
    const state = stateOf(vcpu);
    if (this.#current === state && this.#cpu.vmx.vmptrst() === state.vmcs) return state;
    const status = this.#module.kernel.vac.loadVmcs(this.#module.owner, state.vmcs);
    if (status !== SUCCEED) {
      this.#current = undefined;
      throw new Error(`${this.#module.kernel.moduleName}: VMPTRLD of vcpu ${vcpu.id} failed with status ${status}`);
    }
    this.#current = state;
    return state;
  }

  fetch(vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void {
    this.#select(vcpu);
    fetchRegister(this.#cpu.vmx, cache, register);
  }
  store(vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void {
    this.#select(vcpu);
    storeRegister(this.#cpu.vmx, this.#capabilities, cache, register);
  }
  longModeChanged(cache: RegisterCache): void {
    settleTaskRegister(cache);
  }
  msr(vcpu: Vcpu, index: number): bigint | undefined {
    const segment = BASE_MSRS.get(index);
    if (segment !== undefined) return vcpu.segment(segment).base;
    const field = MSR_FIELDS.get(index);
    if (field === undefined) return undefined;
    this.#select(vcpu);
    return this.#cpu.vmx.vmread(field);
  }
  setMsr(vcpu: Vcpu, index: number, value: bigint): boolean | undefined {
    const segment = BASE_MSRS.get(index);
    if (segment !== undefined) {
      vcpu.setSegment(segment, { ...vcpu.segment(segment), base: value });
      return true;
    }
    const field = MSR_FIELDS.get(index);
    if (field === undefined) return undefined;
    this.#select(vcpu);
    this.#cpu.vmx.vmwrite(field, index === Msr.IA32_SYSENTER_CS ? BigInt.asUintN(32, value) : value);
    return true;
  }

  /** The uapi has MOV SS in bit 0 and STI in bit 1, the VMCS the other way round. */
  interruptShadow(interruptibility: number): number {
    return (
      ((interruptibility & Interruptibility.blockingByMovSs) !== 0 ? 1 : 0) |
      ((interruptibility & Interruptibility.blockingBySti) !== 0 ? 2 : 0)
    );
  }
  withInterruptShadow(interruptibility: number, shadow: number): number {
    const kept = interruptibility & ~(Interruptibility.blockingByMovSs | Interruptibility.blockingBySti);
    if ((shadow & 1) !== 0) return kept | Interruptibility.blockingByMovSs;
    return (shadow & 2) !== 0 ? kept | Interruptibility.blockingBySti : kept;
  }
  nmiMasked(interruptibility: number): boolean {
    return (interruptibility & Interruptibility.blockingByNmi) !== 0;
  }
  withNmiMasked(interruptibility: number, masked: boolean): number {
    return masked ? interruptibility | Interruptibility.blockingByNmi : interruptibility & ~Interruptibility.blockingByNmi;
  }

  enterCpu(vcpu: Vcpu): void {
    const state = this.#select(vcpu);
    if (vcpu.hardware.loaded) return;
    this.#module.kernel.vac.setRunningVcpu(this.#module.owner, state.vpid);
    this.#setPrimaryControls(state, PrimaryControl.pauseExiting, pauseExits(vcpu.vm) ? PrimaryControl.pauseExiting : 0);
    vcpu.hardware.load();
    vcpu.statistics.loaded(this.#cpu.retiredInstructions());
  }
  leaveCpu(vcpu: Vcpu): void {
    if (!vcpu.hardware.loaded) return;
    vcpu.hardware.put();
    vcpu.statistics.put(this.#cpu.retiredInstructions());
    this.#module.kernel.vac.clearRunningVcpu(this.#module.owner);
  }

  inject(vcpu: Vcpu, event: Injection): void {
    this.#select(vcpu);
    const { vmx } = this.#cpu;
    const withError = event.errorCode !== undefined && (vcpu.cr0 & 1n) !== 0n && exceptionHasErrorCode(event.vector);
    let type = TYPES[event.kind];
    const { words } = vcpu.statistics;
    if (event.kind === "nmi") words[VcpuStat.nmi_injections]!++;
    else if (event.kind === "interrupt" || event.kind === "software-interrupt") words[VcpuStat.irq_injections]!++;
    if (event.kind === "software-exception" && event.vector === Vector.DB) type = InterruptionType.privilegedSoftwareException;
    if (withError) vmx.vmwrite(VmcsField.VM_ENTRY_EXCEPTION_ERROR_CODE, event.errorCode!);
    if (event.kind === "software-exception" || event.kind === "software-interrupt") {
      vmx.vmwrite(VmcsField.VM_ENTRY_INSTRUCTION_LENGTH, event.instructionLength);
    }
    const info = event.vector | (type << InterruptionInfo.typeShift) | (withError ? InterruptionInfo.errorCodeValid : 0);
    vmx.vmwrite(VmcsField.VM_ENTRY_INTERRUPTION_INFO, (info | InterruptionInfo.valid) >>> 0);
  }
  interceptDebug(vcpu: Vcpu, wanted: DebugIntercepts): void {
    const state = this.#select(vcpu);
    const exceptions = (wanted.traps ? 1 << Vector.DB : 0) | (wanted.breakpoints ? 1 << Vector.BP : 0);
    this.#cpu.vmx.vmwrite(VmcsField.EXCEPTION_BITMAP, exceptions);
    const kept = state.primaryControls & ~PrimaryControl.movDrExiting;
    state.primaryControls = (wanted.moves ? kept | PrimaryControl.movDrExiting : kept) >>> 0;
    this.#cpu.vmx.vmwrite(VmcsField.PRIMARY_PROCESSOR_CONTROLS, state.primaryControls);
  }
  watchWindows(vcpu: Vcpu, windows: { interrupt: boolean; nmi: boolean }): void {
    let wanted = 0;
    if (windows.interrupt) wanted |= PrimaryControl.interruptWindowExiting;
    if (windows.nmi) wanted |= PrimaryControl.nmiWindowExiting;
    this.#setPrimaryControls(this.#select(vcpu), BOTH_WINDOWS, wanted);
  }
  /** Makes the bits of `mask` those of `value`, in the current VMCS. */
  #setPrimaryControls(state: VmxState, mask: number, value: number): void {
    const wanted = ((state.primaryControls & ~mask) | value) >>> 0;
    if (wanted === state.primaryControls) return;
    state.primaryControls = wanted;
    this.#cpu.vmx.vmwrite(VmcsField.PRIMARY_PROCESSOR_CONTROLS, wanted);
  }
  flushSecondLevel(vm: Vm): void {
    this.#cpu.vmx.invept(InveptType.singleContext, vm.mmu.rootPointer);
  }
  flushGuestTlb(vcpu: Vcpu): void {
    vcpu.statistics.words[VcpuStat.tlb_flush]!++;
    this.#cpu.vmx.invvpid(InvvpidType.singleContext, stateOf(vcpu).vpid, 0n);
  }

  enter(vcpu: Vcpu): void {
    const state = this.#select(vcpu);
    const { vmx } = this.#cpu;
    vcpu.registers.flush();
    state.apic?.enter();
    state.log?.enter();
    let status = state.launched ? vmx.vmresume() : vmx.vmlaunch();
    if (status !== SUCCEED && state.launched && vmx.vmread32(VmcsField.VM_INSTRUCTION_ERROR) === NOT_LAUNCHED) {
      // VAC cleared the VMCS meanwhile (suspend, emergency)
      status = vmx.vmlaunch();
    }
    if (status !== SUCCEED) {
      const error = vmx.vmread32(VmcsField.VM_INSTRUCTION_ERROR);
      throw new Error(
        `${this.#module.kernel.moduleName}: VM entry of vcpu ${vcpu.id} failed with status ${status}, VM-instruction error ${error}`,
      );
    }
    state.launched = true;
    vcpu.registers.invalidate();
    state.exit.invalidate();
    state.log?.flush();
    requeueCutShort(vmx, state.exit, vcpu);
  }
  handleExit(vcpu: Vcpu): ExitOutcome {
    const { exit, host } = this.#select(vcpu);
    return handleVmxExit(vcpu, exit, host);
  }
}
