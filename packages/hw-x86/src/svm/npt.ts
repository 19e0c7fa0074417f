/**
 * Nested page tables, in the host's own format, of four levels or five as the host's own have, with accessed and dirty bits. Every access
 * is a user access at this level. Source: AMD64 APM Vol. 2, Nested Paging.
 */
import type { MemoryBank } from "../physical-memory.ts";
import { FETCH, LARGE, READ, SecondLevelTables, WRITE } from "../second-level-tables.ts";

const PRESENT = 1;
const WRITABLE = 2;
const USER = 4;
const ACCESSED = 0x20;
const DIRTY = 0x40;
const NO_EXECUTE = 0x8000_0000;

/** Bits of the error code of a nested page fault, in the low half of EXITINFO1. */
export const NptError = { present: 1, write: 2, user: 4, reserved: 8, fetch: 16 } as const;
const RESERVED = NptError.present | NptError.reserved;
/** Outcome of a translation beside MAPPED: `error` tells. */
const FAULT = 1;

export class Npt extends SecondLevelTables {
  /** After a fault: error code without the walk bits. */
  error = 0;
  #noExecute = true;

  constructor(physicalAddressBits: number, log: (line: string) => void) {
    super({ name: "NPT", title: "nested page tables", presentBits: PRESENT }, physicalAddressBits, log);
  }

  /** Turns to the tables at bank offset `root`; `tag` names what is cached of them. `host`: what the host's CR4 and EFER say. */
  use(bank: MemoryBank, root: number, tag: number, host: { readonly levels: 4 | 5; readonly noExecute: boolean }): void {
    this.useTables(bank, root, tag, host.levels);
    this.#noExecute = host.noExecute;
  }

  override useNothing(tag: number): void {
    super.useNothing(tag);
    this.#noExecute = true;
  }

  #fault(bits: number, access: number): typeof FAULT {
    let error = bits | NptError.user;
    if ((access & WRITE) !== 0) error |= NptError.write;
    if ((access & FETCH) !== 0 && this.#noExecute) error |= NptError.fetch;
    this.error = error;
    return FAULT;
  }
  protected unreachable(access: number): number {
    return this.#fault(0, access);
  }

  protected walk(gpaLow: number, gpaHigh: number, access: number): number {
    const { words } = this;
    const reservedHigh = this.reservedHigh | (this.#noExecute ? 0 : NO_EXECUTE);
    let table = this.root;
    let rights = READ | WRITE | FETCH;
    for (let level = this.levels - 1; ; level--) {
      this.passes(table);
      const at = this.entryOf(table, level, gpaLow, gpaHigh);
      const low = words[at] as number;
      const high = words[at + 1] as number;
      if ((low & PRESENT) === 0) return this.#fault(0, access);
      if ((high & reservedHigh) !== 0) return this.#fault(RESERVED, access);
      if ((low & WRITABLE) === 0) rights &= ~WRITE;
      if ((low & USER) === 0) rights = 0;
      if ((high & NO_EXECUTE) !== 0) rights &= ~FETCH;
      const isLarge = (low & LARGE) !== 0 && level !== 0;
      if (isLarge && level >= 3) return this.#fault(RESERVED, access);
      if (level !== 0 && !isLarge) {
        const next = this.tableOf(low, high);
        // Of all ones, PS in the highest levels and NX are reserved
        if (next === undefined) return this.#fault(RESERVED, access);
        if ((low & ACCESSED) === 0) words[at] = low | ACCESSED;
        table = next;
        continue;
      }
      const pageBits = 12 + level * 9;
      // Bit 12 of a large page is its PAT bit
      if (isLarge && (low & (2 ** pageBits - 1) & 0xffff_e000) !== 0) return this.#fault(RESERVED, access);
      if ((rights & access) !== access) return this.#fault(NptError.present, access);
      const flags = low | ACCESSED | ((access & WRITE) !== 0 ? DIRTY : 0);
      if (flags !== low) words[at] = flags;
      // A clean page is handed out read-only, so that its first write comes here
      if ((flags & DIRTY) === 0) rights &= ~WRITE;
      return this.map(low, high, rights, pageBits, gpaLow, gpaHigh, access);
    }
  }
}
