/** EPT violations: guest memory that is not mapped yet, or no memory at all. */
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import { EptViolation, InterruptionInfo } from "../arch/vmx-controls.ts";
import { VmxExitReason } from "../arch/vmx-exit-reasons.ts";
import { settleMemoryFault } from "../guest/memory-fault.ts";
import { handleMmio } from "../guest/mmio.ts";
import type { ExitOutcome, VcpuParts } from "../guest/vcpu-parts.ts";
import type { VmxExit, VmxExitHost } from "./exit.ts";
import { deliveryError } from "./exit-handlers.ts";

export function handleEptViolation(vcpu: VcpuParts, exit: VmxExit, host: VmxExitHost): ExitOutcome {
  const { qualification } = exit;
  const vectoring = (exit.vectoringInformation & InterruptionInfo.valid) !== 0;
  // IRET had lifted the blocking of NMIs when it faulted; it runs again
  if (!vectoring && (qualification & EptViolation.nmiUnblocking) !== 0) vcpu.nmiMasked = true;
  const isWrite = (qualification & EptViolation.write) !== 0;
  const settled = settleMemoryFault(vcpu, host.memoryFault(exit.guestPhysicalAddress, isWrite));
  if (settled !== undefined) return settled;
  if (vectoring) return deliveryError(vcpu, exit, host);
  return handleMmio(vcpu);
}

/** No version writes an entry that could be one. */
export function handleEptMisconfiguration(vcpu: VcpuParts, exit: VmxExit, host: VmxExitHost): ExitOutcome {
  const gpa = exit.guestPhysicalAddress;
  vcpu.vm.log("err", `vcpu ${vcpu.id}: EPT misconfiguration at guest physical 0x${gpa.toString(16)}: ${host.dump()}`);
  vcpu.run.exitReason = ExitReason.KVM_EXIT_INTERNAL_ERROR;
  vcpu.run.setInternalError(InternalError.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, [
    BigInt(VmxExitReason.EPT_MISCONFIGURATION),
    BigInt(gpa),
  ]);
  return "exit";
}
