/**
 * For the hardware sanitizer: the tables that CR3 points to where there is no second level below them. They are no guest's own then, but
 * shadows that the hypervisor keeps of those, with addresses of its own memory in them. Only long mode's are looked at: CR3 and the
 * entries of the others reach 4 GiB, where no process has memory.
 */
import { bankOf, type Hpa, offsetOf } from "../addresses.ts";
import { Cr0, Cr4, Efer } from "../engine/system/bits.ts";
import type { MemoryBanks } from "../memory-banks.ts";
import { type FreeLink, findFreeLink, type WalkedTables } from "./walked-tables.ts";

const PRESENT = 1;

/** The guest's registers as the entry loads them: low halves but for CR3, which has no bits above the address. */
export interface PagingRegisters {
  readonly cr0: number;
  readonly cr3: number;
  readonly cr4: number;
  readonly efer: number;
}

export class ShadowTables implements WalkedTables {
  readonly title = "shadow page tables";
  readonly #memory: MemoryBanks;
  readonly #registers: () => PagingRegisters;
  /** Of the structure that is entered by: the guest reaches no other. */
  readonly #bank: () => number;

  constructor(memory: MemoryBanks, bank: () => number, registers: () => PagingRegisters) {
    this.#memory = memory;
    this.#bank = bank;
    this.#registers = registers;
  }

  /** Translations of linear addresses are not followed to the tables that they came from. */
  staleThrough(): undefined {
    return undefined;
  }

  findFree(isFree: Uint8Array): FreeLink | undefined {
    const { cr0, cr3, cr4, efer } = this.#registers();
    if ((cr0 & Cr0.PG) === 0 || (efer & Efer.LMA) === 0) return undefined;
    const table = (cr3 - (cr3 % 4096)) as Hpa;
    const bank = bankOf(table) === this.#bank() ? this.#memory.find(bankOf(table)) : undefined;
    if (bank === undefined || offsetOf(table) >= bank.sizeBytes) return undefined;
    const levels = (cr4 & Cr4.LA57) !== 0 ? 5 : 4;
    const { u32: words, id, sizeBytes: bankBytes } = bank;
    return findFreeLink({ words, bank: id, bankBytes, root: offsetOf(table), levels, presentBits: PRESENT }, isFree);
  }
}
