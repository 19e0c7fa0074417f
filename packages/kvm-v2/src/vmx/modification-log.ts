/**
 * Page-modification logging, for the dirty logs of memory slots: the processor notes each page whose dirty flag it sets, so that a first
 * write needs no exit. As in Linux the log is on while a slot of the VM is logged, and is emptied on every exit; so between exits, and in
 * a move, there is nothing in it. Source: Intel SDM Vol. 3C, Page-Modification Logging.
 */
import type { Hpa, VmxInstructions } from "@mkvm/hw-x86";
import { PAGE_BYTES, SecondaryControl, VmcsField } from "@mkvm/kvm-core";
import type { Vm } from "../vm.ts";

const ENTRIES = 512;
const FIRST = ENTRIES - 1;

export class ModificationLog {
  readonly page: Hpa;
  readonly #vmx: VmxInstructions;
  readonly #vm: Vm;
  readonly #entries: BigUint64Array;
  #isOn = false;

  constructor(vmx: VmxInstructions, vm: Vm, page: Hpa) {
    this.#vmx = vmx;
    this.#vm = vm;
    this.page = page;
    const bytes = vm.kernel.memory.bytes(page, PAGE_BYTES);
    this.#entries = new BigUint64Array(bytes.buffer, bytes.byteOffset, ENTRIES);
  }

  /** Into the current VMCS, whose other controls are set up. */
  setUp(): void {
    this.#vmx.vmwrite(VmcsField.PML_ADDRESS, this.page);
    this.#vmx.vmwrite(VmcsField.PML_INDEX, FIRST);
  }

  /** Before each entry, with the vCPU's VMCS current. */
  enter(): void {
    const isWanted = this.#vm.logsDirtyPages;
    if (isWanted === this.#isOn) return;
    this.#isOn = isWanted;
    const field = VmcsField.SECONDARY_PROCESSOR_CONTROLS;
    const kept = this.#vmx.vmread32(field) & ~SecondaryControl.enablePml;
    this.#vmx.vmwrite(field, (isWanted ? kept | SecondaryControl.enablePml : kept) >>> 0);
  }

  /** After each exit: what is noted goes into the slots' bitmaps. Entries are filled from the last one down. */
  flush(): void {
    if (!this.#isOn) return;
    const index = this.#vmx.vmread32(VmcsField.PML_INDEX) & 0xffff;
    if (index === FIRST) return;
    const { slots } = this.#vm;
    // Of a full log the index has wrapped
    for (let entry = index >= ENTRIES ? 0 : index + 1; entry < ENTRIES; entry++) {
      const gfn = Number(this.#entries[entry]!) / PAGE_BYTES;
      slots.find(gfn)?.markDirty(gfn);
    }
    this.#vmx.vmwrite(VmcsField.PML_INDEX, FIRST);
  }
}
