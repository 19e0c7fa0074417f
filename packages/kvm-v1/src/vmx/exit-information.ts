/** What the current VMCS tells about the last exit: read when asked for. */
import type { VmxInstructions } from "@mkvm/hw-x86";
import { VmcsField as Vmcs, type VmxExit } from "@mkvm/kvm-core";

export function exitInformation(vmx: VmxInstructions): VmxExit {
  return {
    get reason() {
      return vmx.vmread32(Vmcs.EXIT_REASON);
    },
    get qualification() {
      return vmx.vmread32(Vmcs.EXIT_QUALIFICATION);
    },
    get instructionLength() {
      return vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_LENGTH);
    },
    get instructionInformation() {
      return vmx.vmread32(Vmcs.VM_EXIT_INSTRUCTION_INFO);
    },
    get interruptionInformation() {
      return vmx.vmread32(Vmcs.VM_EXIT_INTERRUPTION_INFO);
    },
    get vectoringInformation() {
      return vmx.vmread32(Vmcs.IDT_VECTORING_INFO);
    },
    get guestPhysicalAddress() {
      return vmx.vmreadNumber(Vmcs.GUEST_PHYSICAL_ADDRESS);
    },
  };
}
