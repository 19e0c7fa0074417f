/** EPT violations: guest memory that is not mapped yet, or no memory at all. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import {
  EptViolation,
  type ExitOutcome,
  handleMmio,
  Interruptibility,
  InterruptionInfo,
  VmcsField as Vmcs,
  VmxExitReason,
} from "@mkvm/kvm-core";
import type { Vcpu } from "../vcpu.ts";
import { deliveryError } from "./exit-handlers.ts";

export function handleEptViolation(cpu: LogicalCpu, vcpu: Vcpu): ExitOutcome {
  const { vmx } = cpu;
  const qualification = vmx.vmread32(Vmcs.EXIT_QUALIFICATION);
  const vectoring = (vmx.vmread32(Vmcs.IDT_VECTORING_INFO) & InterruptionInfo.valid) !== 0;
  // IRET had lifted the blocking of NMIs when it faulted; it runs again
  if (!vectoring && (qualification & EptViolation.nmiUnblocking) !== 0) {
    const state = vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE);
    vmx.vmwrite(Vmcs.GUEST_INTERRUPTIBILITY_STATE, state | Interruptibility.blockingByNmi);
  }
  const gpa = vmx.vmreadNumber(Vmcs.GUEST_PHYSICAL_ADDRESS);
  const outcome = vcpu.vm.mmu.fault(gpa, (qualification & EptViolation.write) !== 0);
  if (outcome === "mapped") return "resume";
  if (typeof outcome === "number") return outcome;
  if (vectoring) return deliveryError(cpu, vcpu, VmxExitReason.EPT_VIOLATION);
  return handleMmio(vcpu);
}

/** This module writes no entry that could be one. */
export function handleEptMisconfiguration(cpu: LogicalCpu, vcpu: Vcpu): ExitOutcome {
  const gpa = cpu.vmx.vmread(Vmcs.GUEST_PHYSICAL_ADDRESS);
  vcpu.vm.log(
    "err",
    `vcpu ${vcpu.id}: EPT misconfiguration at guest physical 0x${gpa.toString(16)}: ${vcpu.vm.vendor.dump(vcpu)}`,
  );
  vcpu.run.exitReason = ExitReason.KVM_EXIT_INTERNAL_ERROR;
  vcpu.run.setInternalError(InternalError.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, [
    BigInt(VmxExitReason.EPT_MISCONFIGURATION),
    gpa,
  ]);
  return "exit";
}
