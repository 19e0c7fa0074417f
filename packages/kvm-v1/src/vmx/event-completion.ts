/** After an exit: which events have arrived, and which were cut short and go in again (SDM 3C, "Information for VM Exits That Occur During Event Delivery"). */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { ENTRY_FAILED, Interruptibility, InterruptionInfo, InterruptionType, VmcsField as Vmcs } from "@mkvm/kvm-core";
import type { Vcpu } from "../vcpu.ts";

export function completeEvents(cpu: LogicalCpu, vcpu: Vcpu): void {
  const { vmx } = cpu;
  // A failed entry has delivered nothing: what was to be injected stays queued as it is
  if ((vmx.vmread32(Vmcs.EXIT_REASON) & ENTRY_FAILED) !== 0) return;
  const { queue } = vcpu;
  // An exception that is still pending was raised after the last entry; there is none here
  queue.clearDelivered();
  const info = vmx.vmread32(Vmcs.IDT_VECTORING_INFO);
  if ((info & InterruptionInfo.valid) === 0) return;
  const vector = info & InterruptionInfo.vectorMask;
  const type = (info & InterruptionInfo.typeMask) >>> InterruptionInfo.typeShift;
  const errorCode = (info & InterruptionInfo.errorCodeValid) !== 0 ? vmx.vmread32(Vmcs.IDT_VECTORING_ERROR_CODE) : undefined;
  switch (type) {
    case InterruptionType.nmi: {
      queue.nmiInjected = true;
      // The NMI that is delivered again must not be blocked by itself
      const state = vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE);
      vmx.vmwrite(Vmcs.GUEST_INTERRUPTIBILITY_STATE, state & ~Interruptibility.blockingByNmi);
      return;
    }
    case InterruptionType.hardwareException:
      queue.requeueException(vector, errorCode, false, 0);
      return;
    case InterruptionType.softwareException:
    case InterruptionType.privilegedSoftwareException:
      queue.requeueException(vector, errorCode, true, vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_LENGTH));
      return;
    case InterruptionType.softwareInterrupt:
      queue.interrupt = { vector, software: true };
      queue.instructionLength = vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_LENGTH);
      return;
    case InterruptionType.externalInterrupt:
      queue.interrupt = { vector, software: false };
      return;
  }
}
