/**
 * What Intel's extended page tables and AMD's nested page tables have in common: levels of tables from guest-physical to host-physical
 * addresses, pages of 4 KiB, 2 MiB and 1 GiB, tables that lie in one bank, and a cache of finished walks. What entries mean, and what
 * is wrong with them, is the vendor's.
 */
import { AbsentMemory } from "./absent-memory.ts";
import type { Hpa } from "./addresses.ts";
import type { SecondLevelPage } from "./engine/guest-mode.ts";
import type { MemoryBank } from "./physical-memory.ts";
import { type FreeLink, findFreeLink, type WalkedTables } from "./sanitizer/walked-tables.ts";

/** Outcome of a translation; vendors add their own for what failed. */
export const MAPPED = 0;

export const READ = 1;
export const WRITE = 2;
export const FETCH = 4;
/** PS in both vendors' entries. */
export const LARGE = 0x80;

const SPAN = 0x1_0000_0000;
/** Direct-mapped by guest page number, four words each: page number + 1, translation tag, bank offset, rights and size. */
const CACHE_ENTRIES = 4096;
const CACHED_ABOVE = 0x1000;
/** High half of the first address that as many levels do not reach: 48 bits, or all 52 of an address. */
const reachOf = (levels: number): number => (levels === 5 ? 0x10_0000 : 0x1_0000);
const ALL_ONES = new Uint32Array(1024).fill(0xffff_ffff);
/** Tags that went stale and are remembered for the sanitizer: most never come again. */
const MOST_STALE = 256;

/** Bits 51:N of an entry, as bits of its high half, that must be 0 where physical addresses have N bits. */
function reservedBits(physicalAddressBits: number): number {
  return physicalAddressBits >= 52 ? 0 : (0xf_ffff & ~(2 ** (physicalAddressBits - 32) - 1)) >>> 0;
}

export abstract class SecondLevelTables implements WalkedTables {
  readonly title: string;
  /** Result of the last successful translation; reused. */
  readonly page: SecondLevelPage = { hpa: 0 as Hpa, rights: 0, pageBytes: 4096, isApic: false };

  /** The bank's words, and the bank offset of the top table. */
  protected words: Uint32Array = ALL_ONES;
  protected root = 0;
  /** 4, or 5 where the EPT pointer or the host's CR4 says so. */
  protected levels = 4;
  #reach = reachOf(4);
  protected readonly reservedHigh: number;
  #memory: MemoryBank | undefined;
  #bank = 0;
  #bankBytes = 0;
  #firstUsable = 0;
  #tag = 0;
  /** For the sanitizer, by page of the bank: tag of the walks that last went through it or ended at it; 0: none. */
  #passed: Uint32Array = new Uint32Array(0);
  readonly #passedOf = new Map<number, Uint32Array>();
  /** Tags that have translations through pages that were freed since, and which page. */
  readonly #stale = new Map<number, number>();
  readonly #presentBits: number;
  readonly #cache = new Uint32Array(CACHE_ENTRIES * 4);
  readonly #name: string;
  readonly #absent: AbsentMemory;
  readonly #absentWithout: AbsentMemory;
  readonly #log: (line: string) => void;

  /** `name` and `title`: of the tables, for the log. `presentBits`: an entry leads somewhere when one of them is set. */
  protected constructor(
    { name, title, presentBits }: { name: string; title: string; presentBits: number },
    physicalAddressBits: number,
    log: (line: string) => void,
  ) {
    this.title = title;
    this.reservedHigh = reservedBits(physicalAddressBits);
    this.#presentBits = presentBits;
    this.#name = name;
    this.#absent = new AbsentMemory(name, log);
    this.#absentWithout = new AbsentMemory(`no ${name}`, log);
    this.#log = log;
  }

  /** Turns to the tables at bank offset `root`; `tag` names what is cached of them. */
  protected useTables(bank: MemoryBank, root: number, tag: number, levels = 4): void {
    this.levels = levels;
    this.#reach = reachOf(levels);
    this.words = bank.u32;
    this.root = root;
    if (this.#memory !== bank) this.#passed = this.#passedIn(bank);
    this.#memory = bank;
    this.#bank = bank.id;
    this.#bankBytes = bank.sizeBytes;
    this.#firstUsable = bank.firstFreeOffset;
    this.#tag = tag;
  }

  /** Turns to tables where no memory answers: every entry reads as all ones. */
  useNothing(tag: number): void {
    this.words = ALL_ONES;
    this.root = 0;
    this.#tag = tag;
  }

  /** Without a second level a guest-physical address is a physical one, and must lie in `bank`. */
  physical(bank: MemoryBank, address: number, access: number): SecondLevelPage {
    const offset = address - bank.id * SPAN;
    if (offset < bank.firstFreeOffset || offset >= bank.sizeBytes)
      this.#absentWithout.answer(this.page, bank, address, address, access);
    else {
      this.page.hpa = address as Hpa;
      this.page.rights = READ | WRITE | FETCH;
      this.page.pageBytes = 4096;
    }
    return this.page;
  }

  /** `access`: READ, WRITE and FETCH. MAPPED: the result is in `page`; else what the vendor's walk found. */
  translate(gpa: number, access: number): number {
    const gpaLow = gpa >>> 0;
    const gpaHigh = (gpa - gpaLow) / SPAN;
    const number = ((gpaHigh << 20) | (gpaLow >>> 12)) >>> 0;
    const entry = (number & (CACHE_ENTRIES - 1)) << 2;
    const cache = this.#cache;
    if (gpaHigh < CACHED_ABOVE && cache[entry] === number + 1 && cache[entry + 1] === this.#tag) {
      const packed = cache[entry + 3] as number;
      if ((packed & access) === access) {
        const page = this.page;
        page.hpa = (this.#bank * SPAN + (cache[entry + 2] as number) + (gpaLow & 0xfff)) as Hpa;
        page.rights = packed & 7;
        page.pageBytes = 1 << (packed >>> 3);
        return MAPPED;
      }
    }
    return gpaHigh >= this.#reach ? this.unreachable(access) : this.walk(gpaLow, gpaHigh, access);
  }

  /** Outcome for an address that the levels do not reach. */
  protected abstract unreachable(access: number): number;
  protected abstract walk(gpaLow: number, gpaHigh: number, access: number): number;

  /** Index into `words` of the entry for the address in the table at bank offset `table`. Levels are 4 to 0. */
  protected entryOf(table: number, level: number, gpaLow: number, gpaHigh: number): number {
    const index =
      level === 4
        ? gpaHigh >>> 16
        : level === 3
          ? (gpaHigh >>> 7) & 511
          : level === 2
            ? ((gpaHigh & 0x7f) << 2) | (gpaLow >>> 30)
            : (gpaLow >>> (12 + level * 9)) & 511;
    return (table + index * 8) >>> 2;
  }

  /** Bank offset of the table that an entry leads to; undefined, and said aloud, where it lies elsewhere and the bus answers all ones. */
  protected tableOf(low: number, high: number): number | undefined {
    const next = (low & 0xffff_f000) >>> 0;
    if ((high & 0xf_ffff) === this.#bank && next < this.#bankBytes) return next;
    const address = ((high & 0xf_ffff) * SPAN + next).toString(16);
    this.#log(`${this.#name}: table at ${address} lies outside bank ${this.#bank}; reads as all ones`);
    return undefined;
  }

  // For the sanitizer

  #passedIn(bank: MemoryBank): Uint32Array {
    let passed = this.#passedOf.get(bank.id);
    if (passed === undefined) {
      passed = new Uint32Array(Math.ceil(bank.sizeBytes / 4096));
      this.#passedOf.set(bank.id, passed);
    }
    return passed;
  }
  /** A walk goes through the table at this bank offset. */
  protected passes(table: number): void {
    this.#passed[table >>> 12] = this.#tag;
  }
  pagesFreed(bank: MemoryBank, offset: number, count: number): void {
    const passed = this.#passedOf.get(bank.id);
    if (passed === undefined) return;
    for (let page = offset >>> 12; page < (offset >>> 12) + count; page++) {
      const tag = passed[page] as number;
      if (tag === 0) continue;
      passed[page] = 0;
      this.#stale.set(tag, bank.id * SPAN + page * 4096);
      if (this.#stale.size > MOST_STALE) this.#stale.delete(this.#stale.keys().next().value as number);
    }
  }
  forgetBank(id: number): void {
    this.#passedOf.delete(id);
    if (this.#bank === id) this.#memory = undefined;
  }
  staleThrough(): number | undefined {
    return this.#stale.size === 0 ? undefined : this.#stale.get(this.#tag);
  }
  findFree(isFree: Uint8Array): FreeLink | undefined {
    if (this.words === ALL_ONES) return undefined;
    const { words, root, levels } = this;
    const tree = { words, bank: this.#bank, bankBytes: this.#bankBytes, root, levels, presentBits: this.#presentBits };
    return findFreeLink(tree, isFree);
  }

  /** Ends a walk at the entry of a page of 2^`pageBits` bytes. */
  protected map(
    low: number,
    high: number,
    rights: number,
    pageBits: number,
    gpaLow: number,
    gpaHigh: number,
    access: number,
  ): typeof MAPPED {
    const inPage = 2 ** pageBits - 1;
    const offset = ((((low & 0xffff_f000) >>> 0) & ~inPage) | (gpaLow & inPage)) >>> 0;
    const { page } = this;
    page.pageBytes = inPage + 1;
    if ((high & 0xf_ffff) !== this.#bank || offset >= this.#bankBytes || offset < this.#firstUsable) {
      const address = (high & 0xf_ffff) * SPAN + offset;
      this.#absent.answer(page, this.#memory as MemoryBank, address, gpaHigh * SPAN + gpaLow, access);
      return MAPPED;
    }
    page.hpa = (this.#bank * SPAN + offset) as Hpa;
    page.rights = rights;
    this.#passed[offset >>> 12] = this.#tag;
    if (gpaHigh >= CACHED_ABOVE) return MAPPED;
    const number = ((gpaHigh << 20) | (gpaLow >>> 12)) >>> 0;
    const entry = (number & (CACHE_ENTRIES - 1)) << 2;
    const cache = this.#cache;
    cache[entry] = number + 1;
    cache[entry + 1] = this.#tag;
    cache[entry + 2] = (offset & 0xffff_f000) >>> 0;
    cache[entry + 3] = rights | (pageBits << 3);
    return MAPPED;
  }
}
