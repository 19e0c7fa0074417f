/** Exit information of a vCPU: each field is read from the VMCS once after an exit, when it is asked for. */
import type { VmxInstructions } from "@mkvm/hw-x86";
import { VmcsField, type VmxExit } from "@mkvm/kvm-core";

const FIELDS = [
  VmcsField.EXIT_REASON,
  VmcsField.EXIT_QUALIFICATION,
  VmcsField.VM_EXIT_INSTRUCTION_LENGTH,
  VmcsField.VM_EXIT_INSTRUCTION_INFO,
  VmcsField.VM_EXIT_INTERRUPTION_INFO,
  VmcsField.IDT_VECTORING_INFO,
] as const;

export class ExitCache implements VmxExit {
  readonly #vmx: VmxInstructions;
  readonly #values = new Uint32Array(FIELDS.length);
  #valid = 0;

  constructor(vmx: VmxInstructions) {
    this.#vmx = vmx;
  }

  invalidate(): void {
    this.#valid = 0;
  }
  get reason(): number {
    return this.#field(0);
  }
  /** Its low half: what the exits handled here use. */
  get qualification(): number {
    return this.#field(1);
  }
  get instructionLength(): number {
    return this.#field(2);
  }
  get instructionInformation(): number {
    return this.#field(3);
  }
  get interruptionInformation(): number {
    return this.#field(4);
  }
  get vectoringInformation(): number {
    return this.#field(5);
  }
  get guestPhysicalAddress(): number {
    return this.#vmx.vmreadNumber(VmcsField.GUEST_PHYSICAL_ADDRESS);
  }

  #field(index: number): number {
    if ((this.#valid & (1 << index)) === 0) {
      this.#values[index] = this.#vmx.vmread32(FIELDS[index]!);
      this.#valid |= 1 << index;
    }
    return this.#values[index]!;
  }
}
