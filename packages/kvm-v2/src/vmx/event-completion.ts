/** After an exit: which events have arrived, and which were cut short and go in again (SDM 3C, "Information for VM Exits That Occur During Event Delivery"). */
import type { VmxInstructions } from "@mkvm/hw-x86";
import { ENTRY_FAILED, InterruptionInfo, InterruptionType, VmcsField, type VmxExit } from "@mkvm/kvm-core";
import { EventFlag } from "../pending-events.ts";
import type { Vcpu } from "../vcpu.ts";

export function requeueCutShort(vmx: VmxInstructions, exit: VmxExit, vcpu: Vcpu): void {
  // A failed entry has delivered nothing
  if ((exit.reason & ENTRY_FAILED) !== 0) return;
  const { pending } = vcpu;
  pending.clearDelivered();
  const information = exit.vectoringInformation;
  if ((information & InterruptionInfo.valid) === 0) return;
  const vector = information & InterruptionInfo.vectorMask;
  const hasError = (information & InterruptionInfo.errorCodeValid) !== 0;
  const errorCode = hasError ? vmx.vmread32(VmcsField.IDT_VECTORING_ERROR_CODE) : undefined;
  switch ((information & InterruptionInfo.typeMask) >>> InterruptionInfo.typeShift) {
    case InterruptionType.externalInterrupt:
      pending.requeueInterrupt(vector, false, 0);
      return;
    case InterruptionType.softwareInterrupt:
      pending.requeueInterrupt(vector, true, exit.instructionLength);
      return;
    case InterruptionType.nmi:
      pending.flags |= EventFlag.nmiInjected;
      // Its own delivery must not block the NMI
      vcpu.nmiMasked = false;
      return;
    case InterruptionType.hardwareException:
      pending.requeueException(vector, errorCode, false, 0);
      return;
    default:
      pending.requeueException(vector, errorCode, true, exit.instructionLength);
  }
}
