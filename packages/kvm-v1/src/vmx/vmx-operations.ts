/** The vendor operations on VMX. */

import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { Errno } from "@mkvm/kvm-abi";
import {
  type DebugIntercepts,
  type DescriptorTableState,
  dumpVmcs,
  type ExceptionEvent,
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
  type SegmentState,
  setUpVmcs,
  VcpuStat,
  Vector,
  VmcsField as Vmcs,
  type VmxCapabilities,
  type VmxExit,
  type VmxExitHost,
} from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import { EPT_FORMAT } from "../mmu/ept-entry.ts";
import type { Vcpu } from "../vcpu.ts";
import type { VendorOperations } from "../vendor-operations.ts";
import type { Vm } from "../vm.ts";
import { completeEvents } from "./event-completion.ts";
import { exitInformation } from "./exit-information.ts";
import { VmxRegisters } from "./vmx-registers.ts";

const VMX_SUCCEED = 0;
/** VM-instruction error "VMRESUME with non-launched VMCS". */
const ERROR_RESUME_NOT_LAUNCHED = 5;
const PAGE = 1;

interface VcpuVmx {
  readonly vmcs: Hpa;
  readonly vpid: number;
  readonly exitHost: VmxExitHost;
  launched: boolean;
  hostKernelGsBase: bigint;
  hostXcr0: bigint;
}
const stateOf = (vcpu: Vcpu): VcpuVmx => vcpu.vendorState as VcpuVmx;

interface VmVmx {
  readonly msrBitmap: Hpa;
}

export class VmxOperations implements VendorOperations {
  readonly name = "vmx";
  readonly format = EPT_FORMAT;
  readonly #module: Module;
  readonly #cpu: LogicalCpu;
  readonly #capabilities: VmxCapabilities;
  readonly #registers: VmxRegisters;
  readonly #vms = new Map<Vm, VmVmx>();
  readonly #exit: VmxExit;
  #selected: Vcpu | undefined;

  constructor(module: Module, capabilities: VmxCapabilities) {
    this.#module = module;
    this.#cpu = module.kernel.cpu;
    this.#capabilities = capabilities;
    this.#registers = new VmxRegisters(this.#cpu, capabilities);
    this.#exit = exitInformation(this.#cpu.vmx);
  }

  createVm(vm: Vm): number {
    const msrBitmap = vm.kernel.memory.allocatePages(vm.process, PAGE);
    if (msrBitmap < 0) return msrBitmap;
    this.#vms.set(vm, { msrBitmap: msrBitmap as Hpa });
    this.msrFilterChanged(vm);
    return 0;
  }
  msrFilterChanged(vm: Vm): void {
    fillMsrBitmap(vm.kernel.memory.bytes(this.#vms.get(vm)!.msrBitmap, 4096), vm.settings.msrFilter);
  }
  destroyVm(vm: Vm): void {
    const state = this.#vms.get(vm);
    if (state !== undefined) vm.kernel.memory.freePages(state.msrBitmap, PAGE);
    this.#vms.delete(vm);
  }

  createVcpu(vcpu: Vcpu): number {
    const { vm } = vcpu;
    const vpid = this.#module.kernel.vac.allocateVpid(this.#module.owner);
    if (vpid === 0) return -Errno.ENOSPC;
    const vmcs = vm.kernel.memory.allocatePages(vm.process, PAGE) as Hpa;
    if (vmcs < 0) {
      this.#module.kernel.vac.freeVpid(this.#module.owner, vpid);
      return vmcs;
    }
    // VMCS revision identifier
    const head = vm.kernel.memory.bytes(vmcs, 4);
    new DataView(head.buffer, head.byteOffset, 4).setUint32(0, this.#capabilities.revision, true);
    const state: VcpuVmx = { vmcs, vpid, exitHost: this.#exitHost(vcpu), launched: false, hostKernelGsBase: 0n, hostXcr0: 1n };
    vcpu.vendorState = state;
    this.#module.kernel.vac.clearVmcs(this.#module.owner, vmcs);
    this.select(vcpu);
    if (this.#cpu.vmx.vmptrst() !== vmcs) {
      this.freeVcpu(vcpu);
      return -Errno.EIO;
    }
    setUpVmcs(this.#cpu, {
      capabilities: this.#capabilities,
      vpid,
      eptPointer: vm.mmu.rootPointer,
      msrBitmap: this.#vms.get(vm)!.msrBitmap,
    });
    this.writeEfer(vcpu, 0n);
    this.writeMsr(vcpu, Msr.IA32_PAT, 0x0007_0406_0007_0406n);
    this.cpuidChanged(vcpu);
    return 0;
  }
  freeVcpu(vcpu: Vcpu): void {
    if (vcpu.vendorState === undefined) return;
    const state = stateOf(vcpu);
    if (vcpu.loaded) this.put(vcpu);
    this.#module.kernel.vac.clearVmcs(this.#module.owner, state.vmcs);
    this.#module.kernel.vac.freeVpid(this.#module.owner, state.vpid);
    vcpu.vm.kernel.memory.freePages(state.vmcs, PAGE);
    vcpu.vendorState = undefined;
    if (this.#selected === vcpu) this.#selected = undefined;
  }

  cpuidChanged(vcpu: Vcpu): void {
    this.select(vcpu);
    const field = Vmcs.SECONDARY_PROCESSOR_CONTROLS;
    const { vmx } = this.#cpu;
    vmx.vmwrite(field, followCpuid(vmx.vmread32(field), vcpu.cpuid, this.#capabilities));
  }

  select(vcpu: Vcpu): void {
    const { vmcs } = stateOf(vcpu);
    if (this.#selected === vcpu && this.#cpu.vmx.vmptrst() === vmcs) return;
    const status = this.#module.kernel.vac.loadVmcs(this.#module.owner, vmcs);
    if (status !== VMX_SUCCEED) {
      this.#selected = undefined;
      throw new Error(`${this.#module.kernel.moduleName}: VMPTRLD of vcpu ${vcpu.id} failed with status ${status}`);
    }
    this.#selected = vcpu;
  }

  load(vcpu: Vcpu): void {
    if (vcpu.loaded) return;
    this.select(vcpu);
    const cpu = this.#cpu;
    const state = stateOf(vcpu);
    this.#module.kernel.vac.setRunningVcpu(this.#module.owner, state.vpid);
    this.#setPrimaryControl(PrimaryControl.pauseExiting, pauseExits(vcpu.vm));
    for (let index = 0; index < 4; index++) cpu.writeDr(index, vcpu.drs[index]!);
    cpu.writeDr(6, vcpu.drs[6]!);
    cpu.xrstor(vcpu.fpu);
    cpu.cr2 = vcpu.savedCr2;
    state.hostXcr0 = cpu.xcr0;
    cpu.xcr0 = vcpu.savedXcr0;
    state.hostKernelGsBase = cpu.rdmsr(Msr.IA32_KERNEL_GS_BASE) ?? 0n;
    cpu.wrmsr(Msr.IA32_KERNEL_GS_BASE, vcpu.savedKernelGsBase);
    for (let slot = 0; slot < vcpu.userReturn.length; slot++) this.#module.setUserReturnMsr(slot, vcpu.userReturn[slot]!);
    vcpu.loaded = true;
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
    vcpu.savedKernelGsBase = cpu.rdmsr(Msr.IA32_KERNEL_GS_BASE) ?? 0n;
    cpu.wrmsr(Msr.IA32_KERNEL_GS_BASE, state.hostKernelGsBase);
    vcpu.loaded = false;
    vcpu.statistics.put(cpu.retiredInstructions());
    this.#module.kernel.vac.clearRunningVcpu(this.#module.owner);
  }

  readRip(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#cpu.vmx.vmread(Vmcs.GUEST_RIP);
  }
  writeRip(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.GUEST_RIP, BigInt.asUintN(64, value));
  }
  readRsp(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#cpu.vmx.vmread(Vmcs.GUEST_RSP);
  }
  writeRsp(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.GUEST_RSP, value);
  }
  readRflags(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#cpu.vmx.vmread(Vmcs.GUEST_RFLAGS);
  }
  writeRflags(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.GUEST_RFLAGS, value);
  }
  readSegment(vcpu: Vcpu, register: number): SegmentState {
    this.select(vcpu);
    return this.#registers.readSegment(register);
  }
  writeSegment(vcpu: Vcpu, register: number, state: SegmentState): void {
    this.select(vcpu);
    this.#registers.writeSegment(register, state);
  }
  readTable(vcpu: Vcpu, table: "gdtr" | "idtr"): DescriptorTableState {
    this.select(vcpu);
    return this.#registers.readTable(table);
  }
  writeTable(vcpu: Vcpu, table: "gdtr" | "idtr", state: DescriptorTableState): void {
    this.select(vcpu);
    this.#registers.writeTable(table, state);
  }
  readCr0(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#registers.readCr0();
  }
  writeCr0(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#registers.writeCr0(value);
  }
  readCr3(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#cpu.vmx.vmread(Vmcs.GUEST_CR3);
  }
  writeCr3(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.GUEST_CR3, value);
  }
  readCr4(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#registers.readCr4();
  }
  writeCr4(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#registers.writeCr4(value);
  }
  readEfer(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#registers.readEfer();
  }
  writeEfer(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#registers.writeEfer(value);
  }
  readPdptrs(vcpu: Vcpu): readonly bigint[] {
    this.select(vcpu);
    return this.#registers.readPdptrs();
  }
  writePdptrs(vcpu: Vcpu, values: readonly bigint[]): void {
    this.select(vcpu);
    this.#registers.writePdptrs(values);
  }
  readDr7(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#cpu.vmx.vmread(Vmcs.GUEST_DR7);
  }
  writeDr7(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.GUEST_DR7, value);
  }
  readMsr(vcpu: Vcpu, index: number): bigint | undefined {
    this.select(vcpu);
    return this.#registers.readMsr(index);
  }
  writeMsr(vcpu: Vcpu, index: number, value: bigint): boolean | undefined {
    this.select(vcpu);
    return this.#registers.writeMsr(index, value);
  }
  writeTscOffset(vcpu: Vcpu, offset: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.TSC_OFFSET, offset);
  }
  readInterruptShadow(vcpu: Vcpu): number {
    this.select(vcpu);
    return this.#registers.readInterruptShadow();
  }
  skip(vcpu: Vcpu, length: number): void {
    this.select(vcpu);
    this.#registers.skip(length);
  }
  writeInterruptShadow(vcpu: Vcpu, shadow: number): void {
    this.select(vcpu);
    this.#registers.writeInterruptShadow(shadow);
  }
  readNmiMasked(vcpu: Vcpu): boolean {
    this.select(vcpu);
    return this.#registers.readNmiMasked();
  }
  writeNmiMasked(vcpu: Vcpu, masked: boolean): void {
    this.select(vcpu);
    this.#registers.writeNmiMasked(masked);
  }
  readPendingDebug(vcpu: Vcpu): bigint {
    this.select(vcpu);
    return this.#cpu.vmx.vmread(Vmcs.GUEST_PENDING_DEBUG_EXCEPTIONS);
  }
  writePendingDebug(vcpu: Vcpu, value: bigint): void {
    this.select(vcpu);
    this.#cpu.vmx.vmwrite(Vmcs.GUEST_PENDING_DEBUG_EXCEPTIONS, value);
  }

  interceptDebug(vcpu: Vcpu, wanted: DebugIntercepts): void {
    this.select(vcpu);
    const exceptions = (wanted.traps ? 1 << Vector.DB : 0) | (wanted.breakpoints ? 1 << Vector.BP : 0);
    this.#cpu.vmx.vmwrite(Vmcs.EXCEPTION_BITMAP, exceptions);
    this.#setPrimaryControl(PrimaryControl.movDrExiting, wanted.moves);
  }

  interruptAllowed(vcpu: Vcpu): boolean {
    this.select(vcpu);
    const { vmx } = this.#cpu;
    const blocking = Interruptibility.blockingBySti | Interruptibility.blockingByMovSs;
    return (
      (vmx.vmread32(Vmcs.GUEST_RFLAGS) & 0x200) !== 0 && (vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE) & blocking) === 0
    );
  }
  nmiAllowed(vcpu: Vcpu): boolean {
    this.select(vcpu);
    const blocking = Interruptibility.blockingBySti | Interruptibility.blockingByMovSs | Interruptibility.blockingByNmi;
    return (this.#cpu.vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE) & blocking) === 0;
  }

  injectException(vcpu: Vcpu, event: ExceptionEvent): void {
    this.select(vcpu);
    const protectedMode = (this.#registers.readCr0() & 1n) !== 0n;
    const withError = event.errorCode !== undefined && protectedMode && exceptionHasErrorCode(event.vector);
    // #BP and #OF have a type of their own only when the instruction's delivery is repeated
    const software =
      event.vector === Vector.DB ? InterruptionType.privilegedSoftwareException : InterruptionType.softwareException;
    const type = event.software ? software : InterruptionType.hardwareException;
    if (withError) this.#cpu.vmx.vmwrite(Vmcs.VM_ENTRY_EXCEPTION_ERROR_CODE, event.errorCode!);
    if (event.software) this.#cpu.vmx.vmwrite(Vmcs.VM_ENTRY_INSTRUCTION_LENGTH, vcpu.queue.instructionLength);
    this.#inject(event.vector, type, withError);
  }
  injectInterrupt(vcpu: Vcpu, vector: number, software: boolean): void {
    this.select(vcpu);
    if (software) this.#cpu.vmx.vmwrite(Vmcs.VM_ENTRY_INSTRUCTION_LENGTH, vcpu.queue.instructionLength);
    vcpu.statistics.words[VcpuStat.irq_injections]!++;
    this.#inject(vector, software ? InterruptionType.softwareInterrupt : InterruptionType.externalInterrupt, false);
  }
  injectNmi(vcpu: Vcpu): void {
    this.select(vcpu);
    vcpu.statistics.words[VcpuStat.nmi_injections]!++;
    this.#inject(2, InterruptionType.nmi, false);
  }
  #inject(vector: number, type: number, withError: boolean): void {
    const info = vector | (type << InterruptionInfo.typeShift) | (withError ? InterruptionInfo.errorCodeValid : 0);
    this.#cpu.vmx.vmwrite(Vmcs.VM_ENTRY_INTERRUPTION_INFO, (info | InterruptionInfo.valid) >>> 0);
  }
  openInterruptWindow(vcpu: Vcpu): void {
    this.select(vcpu);
    this.#setPrimaryControl(PrimaryControl.interruptWindowExiting, true);
  }
  openNmiWindow(vcpu: Vcpu): void {
    this.select(vcpu);
    this.#setPrimaryControl(PrimaryControl.nmiWindowExiting, true);
  }

  enter(vcpu: Vcpu): void {
    this.select(vcpu);
    const { vmx } = this.#cpu;
    const state = stateOf(vcpu);
    this.#cpu.loadGprs(vcpu.gprs);
    let status = state.launched ? vmx.vmresume() : vmx.vmlaunch();
    if (status !== VMX_SUCCEED && state.launched && vmx.vmread32(Vmcs.VM_INSTRUCTION_ERROR) === ERROR_RESUME_NOT_LAUNCHED) {
      // VAC cleared the VMCS meanwhile (suspend, emergency)
      status = vmx.vmlaunch();
    }
    this.#cpu.saveGprs(vcpu.gprs);
    if (status !== VMX_SUCCEED) {
      throw new Error(
        `${this.#module.kernel.moduleName}: VM entry of vcpu ${vcpu.id} failed with status ${status}, VM-instruction error ${vmx.vmread32(Vmcs.VM_INSTRUCTION_ERROR)}`,
      );
    }
    completeEvents(this.#cpu, vcpu);
    state.launched = true;
  }
  handleExit(vcpu: Vcpu): ExitOutcome {
    return handleVmxExit(vcpu, this.#exit, stateOf(vcpu).exitHost);
  }
  #exitHost(vcpu: Vcpu): VmxExitHost {
    const cpu = this.#cpu;
    return {
      cpuId: cpu.id,
      memoryFault: (gpa, write) => vcpu.vm.mmu.fault(gpa, write),
      closeInterruptWindow: () => this.#setPrimaryControl(PrimaryControl.interruptWindowExiting, false),
      closeNmiWindow: () => this.#setPrimaryControl(PrimaryControl.nmiWindowExiting, false),
      hostInterrupt: () => this.#module.kernel.scheduler.handleInterrupts(),
      hostNmi: () => cpu.nmiHandler?.(),
      dump: () => dumpVmcs(cpu),
    };
  }
  flushGuestTlb(vcpu: Vcpu): void {
    vcpu.statistics.words[VcpuStat.tlb_flush]!++;
    this.#cpu.vmx.invvpid(InvvpidType.singleContext, stateOf(vcpu).vpid, 0n);
  }

  flushSecondLevel(vm: Vm): void {
    this.#cpu.vmx.invept(InveptType.singleContext, vm.mmu.rootPointer);
  }

  #setPrimaryControl(control: number, on: boolean): void {
    const controls = this.#cpu.vmx.vmread32(Vmcs.PRIMARY_PROCESSOR_CONTROLS);
    const wanted = (on ? controls | control : controls & ~control) >>> 0;
    if (wanted !== controls) this.#cpu.vmx.vmwrite(Vmcs.PRIMARY_PROCESSOR_CONTROLS, wanted);
  }
}
