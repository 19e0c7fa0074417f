/** Extended page tables, with accessed and dirty flags. Source: Intel SDM Vol. 3C, The Extended Page Table Mechanism (EPT). */
import type { MemoryBank } from "../physical-memory.ts";
import { FETCH, LARGE, MAPPED, READ, SecondLevelTables, WRITE } from "../second-level-tables.ts";
import { eptLevels } from "./control-checks.ts";
import type { ModificationLog } from "./modification-log.ts";

/** `logFull`: a dirty flag was to be set, and the page-modification log has no room. */
export const EptResult = { mapped: MAPPED, violation: 1, misconfiguration: 2, logFull: 3 } as const;
export type EptResult = (typeof EptResult)[keyof typeof EptResult];

const ACCESSED = 1 << 8;
const DIRTY = 1 << 9;
const MEMORY_TYPES = 0b0111_0011; // UC, WC, WT, WP, WB

export class Ept extends SecondLevelTables {
  /** After a violation: AND of the rights of the entries that were used, bits 2:0. */
  violationRights = 0;
  #accessedDirty = false;
  /** Where pages whose dirty flag is set are logged, if they are. */
  log: ModificationLog | undefined;

  constructor(physicalAddressBits: number, log: (line: string) => void) {
    super({ name: "EPT", title: "EPT", presentBits: READ | WRITE | FETCH }, physicalAddressBits, log);
  }

  /** Turns to the EPT at `pointer` (low half of the EPTP) in `bank`; `tag` names its cached walks. */
  use(bank: MemoryBank, pointerLow: number, tag: number): void {
    this.useTables(bank, (pointerLow & 0xffff_f000) >>> 0, tag, eptLevels(pointerLow));
    this.#accessedDirty = (pointerLow & (1 << 6)) !== 0;
  }

  override useNothing(tag: number): void {
    super.useNothing(tag);
    this.#accessedDirty = false;
  }

  get hasAccessedDirty(): boolean {
    return this.#accessedDirty;
  }

  #violation(rights: number): EptResult {
    this.violationRights = rights;
    return EptResult.violation;
  }
  protected unreachable(): EptResult {
    return this.#violation(0);
  }

  protected walk(gpaLow: number, gpaHigh: number, access: number): EptResult {
    const { words } = this;
    let table = this.root;
    let rights = READ | WRITE | FETCH;
    for (let level = this.levels - 1; ; level--) {
      this.passes(table);
      const at = this.entryOf(table, level, gpaLow, gpaHigh);
      const low = words[at] as number;
      const high = words[at + 1] as number;
      if ((low & 7) === 0) return this.#violation(0);
      if ((low & 3) === 2 || (high & this.reservedHigh) !== 0) return EptResult.misconfiguration; // writable but not readable
      rights &= low;
      const isLeaf = level === 0 || (level < 3 && (low & LARGE) !== 0);
      if (!isLeaf) {
        if ((low & (level >= 3 ? 0xf8 : 0x78)) !== 0) return EptResult.misconfiguration;
        if (this.#accessedDirty && (low & ACCESSED) === 0) words[at] = low | ACCESSED;
        const next = this.tableOf(low, high);
        // All ones are no valid entry
        if (next === undefined) return EptResult.misconfiguration;
        table = next;
        continue;
      }
      if (((MEMORY_TYPES >>> ((low >>> 3) & 7)) & 1) === 0) return EptResult.misconfiguration;
      const pageBits = 12 + level * 9;
      if (level !== 0 && (low & (2 ** pageBits - 1) & 0xffff_f000) !== 0) return EptResult.misconfiguration;
      if ((rights & access) !== access) return this.#violation(rights);
      if (this.#accessedDirty) {
        const flags = low | ACCESSED | ((access & WRITE) !== 0 ? DIRTY : 0);
        if ((flags & ~low & DIRTY) !== 0 && this.log?.add(gpaLow, gpaHigh) === false) return EptResult.logFull;
        if (flags !== low) words[at] = flags;
        // A clean page is handed out read-only, so that its first write comes here
        if ((flags & DIRTY) === 0) rights &= ~WRITE;
      }
      return this.map(low, high, rights, pageBits, gpaLow, gpaHigh, access);
    }
  }
}
