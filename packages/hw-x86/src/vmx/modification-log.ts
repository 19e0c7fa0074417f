/** Page-modification logging: guest-physical addresses whose dirty flag is set. Source: Intel SDM Vol. 3C, Page-Modification Logging. */
import type { MemoryBanks } from "../memory-banks.ts";
import type { MemoryBank } from "../physical-memory.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

const ENTRIES = 512;

export class ModificationLog {
  readonly #vmcs: Vmcs;
  #bank: MemoryBank | undefined;
  #offset = 0;

  constructor(vmcs: Vmcs) {
    this.#vmcs = vmcs;
  }

  /** The log of the current VMCS, in the page at `address`. */
  point(address: number, memory: MemoryBanks): void {
    this.#bank = memory.holding(address, 4096);
    this.#offset = address % 0x1_0000_0000;
  }

  /** False: the log is full, and the flag is not to be set. */
  add(gpaLow: number, gpaHigh: number): boolean {
    const index = this.#vmcs.low(slot.GUEST_PML_INDEX) & 0xffff;
    if (index >= ENTRIES) return false;
    if (this.#bank !== undefined) {
      const at = (this.#offset + index * 8) >>> 2;
      this.#bank.u32[at] = gpaLow & 0xffff_f000;
      this.#bank.u32[at + 1] = gpaHigh;
    }
    this.#vmcs.set(slot.GUEST_PML_INDEX, (index - 1) & 0xffff);
    return true;
  }
}
