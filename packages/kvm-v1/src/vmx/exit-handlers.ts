/** What each VM exit means (SDM 3C, "VM Exits"): one handler a reason. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import {
  BASIC_REASON_MASK,
  cpl,
  ENTRY_FAILED,
  type ExitOutcome,
  executeCpuid,
  Gpr,
  guestRdmsr,
  guestWrmsr,
  handleHypercall,
  handlePortExit,
  InterruptionInfo,
  InterruptionType,
  PrimaryControl,
  setXcr,
  Vector,
  VmcsField as Vmcs,
  VmxExitReason,
  vmxExitReasonName,
} from "@mkvm/kvm-core";
import type { Vcpu } from "../vcpu.ts";
import { handleCrAccess } from "./cr-access.ts";
import { handleEptMisconfiguration, handleEptViolation } from "./ept-exits.ts";
import { setPrimaryControl } from "./vmx-operations.ts";

type Handler = (cpu: LogicalCpu, vcpu: Vcpu) => ExitOutcome;
const LOW_32 = 0xffff_ffffn;

/** Decides what an exit needs; kvm_run is filled in where the answer is "exit". */
export function handleExit(cpu: LogicalCpu, vcpu: Vcpu): ExitOutcome {
  const reason = cpu.vmx.vmread32(Vmcs.EXIT_REASON);
  if ((reason & ENTRY_FAILED) !== 0) return failedEntry(cpu, vcpu, reason);
  const handler = HANDLERS.get(reason & BASIC_REASON_MASK);
  if (handler === undefined) return unexpectedExit(cpu, vcpu, reason);
  // An exit in the middle of an event's delivery that is not a memory access cannot be resumed from
  if (
    (cpu.vmx.vmread32(Vmcs.IDT_VECTORING_INFO) & InterruptionInfo.valid) !== 0 &&
    !DURING_DELIVERY.has(reason & BASIC_REASON_MASK)
  ) {
    return deliveryError(cpu, vcpu, reason);
  }
  return handler(cpu, vcpu);
}

const DURING_DELIVERY: ReadonlySet<number> = new Set([
  VmxExitReason.EXCEPTION_OR_NMI,
  VmxExitReason.EXTERNAL_INTERRUPT,
  VmxExitReason.EPT_VIOLATION,
  VmxExitReason.EPT_MISCONFIGURATION,
  VmxExitReason.TASK_SWITCH,
  VmxExitReason.TRIPLE_FAULT,
]);

function failedEntry(cpu: LogicalCpu, vcpu: Vcpu, reason: number): ExitOutcome {
  vcpu.vm.log("err", `vcpu ${vcpu.id}: VM entry failed, ${vmxExitReasonName(reason)}: ${vcpu.vm.vendor.dump(vcpu)}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_FAIL_ENTRY;
  vcpu.run.setFailEntry(reason, cpu.id);
  return "exit";
}

function internalError(vcpu: Vcpu, suberror: number, why: string, data: readonly bigint[]): ExitOutcome {
  vcpu.vm.log("err", `vcpu ${vcpu.id}: ${why}: ${vcpu.vm.vendor.dump(vcpu)}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_INTERNAL_ERROR;
  vcpu.run.setInternalError(suberror, data);
  return "exit";
}

function unexpectedExit(cpu: LogicalCpu, vcpu: Vcpu, reason: number): ExitOutcome {
  const data = [BigInt(reason), BigInt(cpu.id)];
  const why = `unexpected VM exit ${vmxExitReasonName(reason)}`;
  return internalError(vcpu, InternalError.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, why, data);
}

export function deliveryError(cpu: LogicalCpu, vcpu: Vcpu, reason: number): ExitOutcome {
  const data = [
    BigInt(cpu.vmx.vmread32(Vmcs.IDT_VECTORING_INFO)),
    BigInt(reason),
    cpu.vmx.vmread(Vmcs.EXIT_QUALIFICATION),
    cpu.vmx.vmread(Vmcs.GUEST_PHYSICAL_ADDRESS),
  ];
  const why = `${vmxExitReasonName(reason)} while an event was being delivered`;
  return internalError(vcpu, InternalError.KVM_INTERNAL_ERROR_DELIVERY_EV, why, data);
}

function skip(cpu: LogicalCpu, vcpu: Vcpu): ExitOutcome {
  vcpu.skip(cpu.vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_LENGTH));
  return "resume";
}
function generalProtection(vcpu: Vcpu): ExitOutcome {
  vcpu.queueException(Vector.GP, 0);
  return "resume";
}
const undefinedOpcode: Handler = (_cpu, vcpu) => {
  vcpu.queueException(Vector.UD);
  return "resume";
};

function edxEax(vcpu: Vcpu): bigint {
  return ((vcpu.gpr(Gpr.RDX) & LOW_32) << 32n) | (vcpu.gpr(Gpr.RAX) & LOW_32);
}

const handleCpuid: Handler = (cpu, vcpu) => {
  const leaf = Number(vcpu.gpr(Gpr.RAX) & LOW_32);
  const subleaf = Number(vcpu.gpr(Gpr.RCX) & LOW_32);
  const state = { apicId: vcpu.id, cr4: vcpu.cr4, xcr0: vcpu.xcr0, apicEnabled: vcpu.lapic?.enabled ?? true };
  const result = executeCpuid(vcpu.cpuid, state, leaf, subleaf);
  vcpu.setGpr(Gpr.RAX, BigInt(result.eax >>> 0));
  vcpu.setGpr(Gpr.RBX, BigInt(result.ebx >>> 0));
  vcpu.setGpr(Gpr.RCX, BigInt(result.ecx >>> 0));
  vcpu.setGpr(Gpr.RDX, BigInt(result.edx >>> 0));
  return skip(cpu, vcpu);
};

const handleIo: Handler = (cpu, vcpu) => {
  const qualification = cpu.vmx.vmread32(Vmcs.EXIT_QUALIFICATION);
  const isIn = (qualification & 8) !== 0;
  let string: { rep: boolean; addressSize: number; segment: number } | undefined;
  if ((qualification & 0x10) !== 0) {
    const information = cpu.vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_INFO);
    string = {
      rep: (qualification & 0x20) !== 0,
      addressSize: 2 << ((information >>> 7) & 7),
      segment: isIn ? 0 : (information >>> 15) & 7,
    };
  }
  return handlePortExit(vcpu, {
    isIn,
    size: (qualification & 7) + 1,
    port: (qualification >>> 16) & 0xffff,
    string,
    instructionLength: cpu.vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_LENGTH),
  });
};

const handleRdmsr: Handler = (cpu, vcpu) => {
  const value = guestRdmsr(vcpu, Number(vcpu.gpr(Gpr.RCX) & LOW_32));
  if (value === undefined) return generalProtection(vcpu);
  vcpu.setGpr(Gpr.RAX, value & LOW_32);
  vcpu.setGpr(Gpr.RDX, value >> 32n);
  return skip(cpu, vcpu);
};

const handleWrmsr: Handler = (cpu, vcpu) =>
  guestWrmsr(vcpu, Number(vcpu.gpr(Gpr.RCX) & LOW_32), edxEax(vcpu)) ? skip(cpu, vcpu) : generalProtection(vcpu);

const handleXsetbv: Handler = (cpu, vcpu) =>
  cpl(vcpu) === 0 && setXcr(vcpu, Number(vcpu.gpr(Gpr.RCX) & LOW_32), edxEax(vcpu)) ? skip(cpu, vcpu) : generalProtection(vcpu);

const handleHlt: Handler = (cpu, vcpu) => {
  skip(cpu, vcpu);
  return "halt";
};

const handleVmcall: Handler = (cpu, vcpu) => {
  handleHypercall(vcpu);
  return skip(cpu, vcpu);
};

const handleTripleFault: Handler = (_cpu, vcpu) => {
  vcpu.run.exitReason = ExitReason.KVM_EXIT_SHUTDOWN;
  return "exit";
};

const handleExternalInterrupt: Handler = (_cpu, vcpu) => {
  vcpu.vm.kernel.scheduler.handleInterrupts();
  return "resume";
};

const handleExceptionOrNmi: Handler = (cpu, vcpu) => {
  const info = cpu.vmx.vmread32(Vmcs.VM_EXIT_INTERRUPTION_INFO);
  const type = (info & InterruptionInfo.typeMask) >>> InterruptionInfo.typeShift;
  // NMIs of the host; the guest's exceptions are not intercepted
  if (type === InterruptionType.nmi) return "resume";
  return unexpectedExit(cpu, vcpu, VmxExitReason.EXCEPTION_OR_NMI);
};

const handleTaskSwitch: Handler = (_cpu, vcpu) =>
  internalError(
    vcpu,
    InternalError.KVM_INTERNAL_ERROR_EMULATION,
    "hardware task switches (SDM 3A, Task Management) are not emulated",
    [],
  );

/** Without a PMU there is no counter to read. */
const handleRdpmc: Handler = (_cpu, vcpu) => generalProtection(vcpu);

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [VmxExitReason.EXCEPTION_OR_NMI, handleExceptionOrNmi],
  [VmxExitReason.EXTERNAL_INTERRUPT, handleExternalInterrupt],
  [VmxExitReason.TRIPLE_FAULT, handleTripleFault],
  [
    VmxExitReason.INTERRUPT_WINDOW,
    (cpu) => {
      setPrimaryControl(cpu, PrimaryControl.interruptWindowExiting, false);
      return "resume";
    },
  ],
  [
    VmxExitReason.NMI_WINDOW,
    (cpu) => {
      setPrimaryControl(cpu, PrimaryControl.nmiWindowExiting, false);
      return "resume";
    },
  ],
  [VmxExitReason.TASK_SWITCH, handleTaskSwitch],
  [VmxExitReason.CPUID, handleCpuid],
  [VmxExitReason.HLT, handleHlt],
  [VmxExitReason.INVD, skip],
  [VmxExitReason.WBINVD, skip],
  [VmxExitReason.PAUSE, skip],
  // Not offered in CPUID; as Linux by default, no operation rather than #UD
  [VmxExitReason.MWAIT, skip],
  [VmxExitReason.MONITOR, skip],
  [VmxExitReason.RDPMC, handleRdpmc],
  [VmxExitReason.VMCALL, handleVmcall],
  [VmxExitReason.CR_ACCESS, handleCrAccess],
  [VmxExitReason.IO_INSTRUCTION, handleIo],
  [VmxExitReason.RDMSR, handleRdmsr],
  [VmxExitReason.WRMSR, handleWrmsr],
  [VmxExitReason.EPT_VIOLATION, handleEptViolation],
  [VmxExitReason.EPT_MISCONFIGURATION, handleEptMisconfiguration],
  [VmxExitReason.XSETBV, handleXsetbv],
  // There is no nested virtualization
  ...[
    VmxExitReason.VMCLEAR,
    VmxExitReason.VMLAUNCH,
    VmxExitReason.VMPTRLD,
    VmxExitReason.VMPTRST,
    VmxExitReason.VMREAD,
    VmxExitReason.VMRESUME,
    VmxExitReason.VMWRITE,
    VmxExitReason.VMXOFF,
    VmxExitReason.VMXON,
    VmxExitReason.INVEPT,
    VmxExitReason.INVVPID,
    VmxExitReason.VMFUNC,
    VmxExitReason.GETSEC,
    VmxExitReason.ENCLS,
  ].map((reason): [number, Handler] => [reason, undefinedOpcode]),
]);
