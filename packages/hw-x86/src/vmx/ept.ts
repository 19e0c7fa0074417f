/**
 * Extended page tables: guest-physical to host-physical, four levels, pages of 4 KiB, 2 MiB and 1 GiB, with accessed and dirty
 * flags. Source: Intel SDM Vol. 3C, The Extended Page Table Mechanism (EPT).
 */

import { AbsentMemory } from "../absent-memory.ts";
import type { Hpa } from "../addresses.ts";
import type { SecondLevelPage } from "../engine/guest-mode.ts";
import type { MemoryBank } from "../physical-memory.ts";

export const EptResult = { mapped: 0, violation: 1, misconfiguration: 2 } as const;
export type EptResult = (typeof EptResult)[keyof typeof EptResult];

const ACCESSED = 1 << 8;
const DIRTY = 1 << 9;
const LARGE = 1 << 7;
const SPAN = 0x1_0000_0000;

/** Cached walks: direct-mapped by guest page number, four words each: page number + 1, context tag, bank offset, rights and size. */
const CACHE_ENTRIES = 4096;

/** Bits 51:N of an entry, as bits of its high half, that must be 0 where physical addresses have N bits. */
function reservedHigh(physicalAddressBits: number): number {
  return physicalAddressBits >= 52 ? 0 : (0xf_ffff & ~(2 ** (physicalAddressBits - 32) - 1)) >>> 0;
}

const ALL_ONES = new Uint32Array(1024).fill(0xffff_ffff);
const MEMORY_TYPES = 0b0111_0011; // UC, WC, WT, WP, WB

export class Ept {
  /** Result of the last successful `translate`; reused. */
  readonly page: SecondLevelPage = { hpa: 0 as Hpa, rights: 0, pageBytes: 4096 };
  /** After a violation: AND of the rights of the entries that were used, bits 2:0. */
  violationRights = 0;

  #u32: Uint32Array = new Uint32Array(0);
  #memory: MemoryBank | undefined;
  #bank = 0;
  #bankBytes = 0;
  #firstUsable = 0;
  #root = 0;
  #tag = 0;
  #accessedDirty = false;
  readonly #reservedHigh: number;
  readonly #cache = new Uint32Array(CACHE_ENTRIES * 4);
  readonly #absent: AbsentMemory;
  readonly #log: (line: string) => void;

  constructor(physicalAddressBits: number, log: (line: string) => void) {
    this.#reservedHigh = reservedHigh(physicalAddressBits);
    this.#log = log;
    this.#absent = new AbsentMemory("EPT", log);
  }

  /** Turns to the EPT at `pointer` (low and high half of the EPTP) in `bank`; `tag` names its cached walks. */
  use(bank: MemoryBank, pointerLow: number, tag: number): void {
    this.#u32 = bank.u32;
    this.#memory = bank;
    this.#bank = bank.id;
    this.#bankBytes = bank.sizeBytes;
    this.#firstUsable = bank.firstFreeOffset;
    this.#root = (pointerLow & 0xffff_f000) >>> 0;
    this.#accessedDirty = (pointerLow & (1 << 6)) !== 0;
    this.#tag = tag;
  }

  /** Turns to tables where no memory answers: every entry reads as all ones. */
  useNothing(tag: number): void {
    this.#u32 = ALL_ONES;
    this.#root = 0;
    this.#accessedDirty = false;
    this.#tag = tag;
  }

  /** Without EPT a guest-physical address is a physical one, and must lie in `bank`. */
  physical(bank: MemoryBank, address: number, access: number): SecondLevelPage {
    this.#bank = bank.id;
    const offset = address - bank.id * SPAN;
    if (offset < bank.firstFreeOffset || offset >= bank.sizeBytes)
      this.#absent.answer(this.page, bank, address, address, access);
    else {
      this.page.hpa = address as Hpa;
      this.page.rights = 7;
      this.page.pageBytes = 4096;
    }
    return this.page;
  }

  get hasAccessedDirty(): boolean {
    return this.#accessedDirty;
  }

  /** `access`: bit 0 read, 1 write, 2 fetch. On `mapped` the result is in `page`. */
  translate(gpa: number, access: number): EptResult {
    const gpaLow = gpa >>> 0;
    const gpaHigh = (gpa - gpaLow) / SPAN;
    const number = ((gpaHigh << 20) | (gpaLow >>> 12)) >>> 0;
    const entry = (number & (CACHE_ENTRIES - 1)) << 2;
    const cache = this.#cache;
    if (gpaHigh < 0x1000 && cache[entry] === number + 1 && cache[entry + 1] === this.#tag) {
      const packed = cache[entry + 3] as number;
      if ((packed & access) === access) {
        const page = this.page;
        page.hpa = (this.#bank * SPAN + (cache[entry + 2] as number) + (gpaLow & 0xfff)) as Hpa;
        page.rights = packed & 7;
        page.pageBytes = 1 << (packed >>> 3);
        return EptResult.mapped;
      }
    }
    return this.#walk(gpaLow, gpaHigh, access, number, entry);
  }

  #walk(gpaLow: number, gpaHigh: number, access: number, number: number, entry: number): EptResult {
    this.violationRights = 0;
    if (gpaHigh >= 0x1_0000) return EptResult.violation; // above bit 47: no four-level table can map it
    const u32 = this.#u32;
    let table = this.#root;
    let rights = 7;
    for (let level = 3; ; level--) {
      const index =
        level === 3
          ? gpaHigh >>> 7
          : level === 2
            ? ((gpaHigh & 0x7f) << 2) | (gpaLow >>> 30)
            : (gpaLow >>> (12 + level * 9)) & 511;
      const at = (table + index * 8) >>> 2;
      const low = u32[at] as number;
      const high = u32[at + 1] as number;
      if ((low & 7) === 0) {
        this.violationRights = 0;
        return EptResult.violation;
      }
      if ((low & 3) === 2 || (high & this.#reservedHigh) !== 0) return EptResult.misconfiguration; // writable but not readable
      rights &= low;
      const isLeaf = level === 0 || (level !== 3 && (low & LARGE) !== 0);
      if (!isLeaf) {
        if ((low & (level === 3 ? 0xf8 : 0x78)) !== 0) return EptResult.misconfiguration;
        if (this.#accessedDirty && (low & ACCESSED) === 0) u32[at] = low | ACCESSED;
        const next = (low & 0xffff_f000) >>> 0;
        if ((high & 0xf_ffff) !== this.#bank || next >= this.#bankBytes) {
          // The bus answers all ones, which is no valid entry
          this.#log(
            `EPT: table at ${((high & 0xf_ffff) * SPAN + next).toString(16)} lies outside bank ${this.#bank}; reads as all ones`,
          );
          return EptResult.misconfiguration;
        }
        table = next;
        continue;
      }
      if (((MEMORY_TYPES >>> ((low >>> 3) & 7)) & 1) === 0) return EptResult.misconfiguration;
      const pageBits = 12 + level * 9;
      const inPage = 2 ** pageBits - 1;
      if (level !== 0 && (low & inPage & 0xffff_f000) !== 0) return EptResult.misconfiguration;
      if ((rights & access) !== access) {
        this.violationRights = rights;
        return EptResult.violation;
      }
      return this.#finish(at, low, high, rights, pageBits, gpaLow, gpaHigh, access, number, entry);
    }
  }

  #finish(
    at: number,
    low: number,
    high: number,
    rightsOfWalk: number,
    pageBits: number,
    gpaLow: number,
    gpaHigh: number,
    access: number,
    number: number,
    entry: number,
  ): EptResult {
    let rights = rightsOfWalk;
    if (this.#accessedDirty) {
      const flags = low | ACCESSED | ((access & 2) !== 0 ? DIRTY : 0);
      if (flags !== low) this.#u32[at] = flags;
      // A clean page is handed out read-only, so that its first write comes here
      if ((flags & DIRTY) === 0) rights &= ~2;
    }
    const inPage = 2 ** pageBits - 1;
    const offset = ((((low & 0xffff_f000) >>> 0) & ~inPage) | (gpaLow & inPage)) >>> 0;
    const page = this.page;
    page.pageBytes = inPage + 1;
    if ((high & 0xf_ffff) !== this.#bank || offset >= this.#bankBytes || offset < this.#firstUsable) {
      const address = (high & 0xf_ffff) * SPAN + offset;
      this.#absent.answer(page, this.#memory as MemoryBank, address, gpaHigh * SPAN + gpaLow, access);
      return EptResult.mapped;
    }
    page.hpa = (this.#bank * SPAN + offset) as Hpa;
    page.rights = rights;
    if (gpaHigh < 0x1000) {
      const cache = this.#cache;
      cache[entry] = number + 1;
      cache[entry + 1] = this.#tag;
      cache[entry + 2] = (offset & 0xffff_f000) >>> 0;
      cache[entry + 3] = rights | (pageBits << 3);
    }
    return EptResult.mapped;
  }
}
