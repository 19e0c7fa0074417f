/**
 * Nested paging: guest-physical to host-physical through page tables in the host's own format, four levels, pages of 4 KiB, 2 MiB
 * and 1 GiB, with accessed and dirty bits. Every access is a user access at this level. Source: AMD64 APM Vol. 2, Nested Paging.
 */
import { AbsentMemory } from "../absent-memory.ts";
import type { Hpa } from "../addresses.ts";
import type { SecondLevelPage } from "../engine/guest-mode.ts";
import type { MemoryBank } from "../physical-memory.ts";

const PRESENT = 1;
const WRITABLE = 2;
const USER = 4;
const ACCESSED = 0x20;
const DIRTY = 0x40;
const LARGE = 0x80;
const NO_EXECUTE = 0x8000_0000;
const SPAN = 0x1_0000_0000;

const READ = 1;
const WRITE = 2;
const FETCH = 4;

/** Bits of the error code of a nested page fault, in the low half of EXITINFO1. */
export const NptError = { present: 1, write: 2, user: 4, reserved: 8, fetch: 16 } as const;

/** Cached walks: direct-mapped by guest page number, four words each: page number + 1, translation tag, bank offset, rights and size. */
const CACHE_ENTRIES = 4096;

const ALL_ONES = new Uint32Array(1024).fill(0xffff_ffff);

export class Npt {
  /** Result of the last successful translation; reused. */
  readonly page: SecondLevelPage = { hpa: 0 as Hpa, rights: 0, pageBytes: 4096 };
  /** After a failed `translate`: error code without the walk bits. */
  error = 0;

  #u32: Uint32Array = ALL_ONES;
  #memory: MemoryBank | undefined;
  #bank = 0;
  #bankBytes = 0;
  #firstUsable = 0;
  #root = 0;
  #tag = 0;
  #noExecute = true;
  readonly #reservedHigh: number;
  readonly #cache = new Uint32Array(CACHE_ENTRIES * 4);
  readonly #absent: AbsentMemory;
  readonly #absentPhysical: AbsentMemory;
  readonly #log: (line: string) => void;

  constructor(physicalAddressBits: number, log: (line: string) => void) {
    this.#reservedHigh = physicalAddressBits >= 52 ? 0 : (0xf_ffff & ~(2 ** (physicalAddressBits - 32) - 1)) >>> 0;
    this.#absent = new AbsentMemory("NPT", log);
    this.#absentPhysical = new AbsentMemory("SVM without nested paging", log);
    this.#log = log;
  }

  /** Turns to the tables at bank offset `root`; `tag` names what is cached of them. `noExecute`: EFER.NXE of the host. */
  use(bank: MemoryBank, root: number, tag: number, noExecute: boolean): void {
    this.#u32 = bank.u32;
    this.#memory = bank;
    this.#bank = bank.id;
    this.#bankBytes = bank.sizeBytes;
    this.#firstUsable = bank.firstFreeOffset;
    this.#root = root;
    this.#tag = tag;
    this.#noExecute = noExecute;
  }

  /** Turns to tables where no memory answers: every entry reads as all ones, for a guest whose registers live in `bank`. */
  useNothing(bank: MemoryBank, tag: number): void {
    this.use(bank, 0, tag, true);
    this.#u32 = ALL_ONES;
  }

  /** Without nested paging a guest-physical address is a physical one, and must lie in `bank`. */
  physical(bank: MemoryBank, address: number, access: number): SecondLevelPage {
    const offset = address - bank.id * SPAN;
    if (offset < bank.firstFreeOffset || offset >= bank.sizeBytes)
      this.#absentPhysical.answer(this.page, bank, address, address, access);
    else {
      this.page.hpa = address as Hpa;
      this.page.rights = 7;
      this.page.pageBytes = 4096;
    }
    return this.page;
  }

  /** `access`: bit 0 read, 1 write, 2 fetch. True: the result is in `page`; false: `error` tells. */
  translate(gpa: number, access: number): boolean {
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
        return true;
      }
    }
    return this.#walk(gpaLow, gpaHigh, access, number, entry);
  }

  #fail(bits: number, access: number): false {
    let error = bits | NptError.user;
    if ((access & WRITE) !== 0) error |= NptError.write;
    if ((access & FETCH) !== 0 && this.#noExecute) error |= NptError.fetch;
    this.error = error;
    return false;
  }

  #walk(gpaLow: number, gpaHigh: number, access: number, number: number, cacheEntry: number): boolean {
    if (gpaHigh >= 0x1_0000) return this.#fail(0, access); // above bit 47: no four-level table maps it
    const u32 = this.#u32;
    const reservedHigh = this.#reservedHigh | (this.#noExecute ? 0 : NO_EXECUTE);
    let table = this.#root;
    let rights = READ | WRITE | FETCH;
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
      if ((low & PRESENT) === 0) return this.#fail(0, access);
      if ((high & reservedHigh) !== 0) return this.#fail(NptError.present | NptError.reserved, access);
      if ((low & WRITABLE) === 0) rights &= ~WRITE;
      if ((low & USER) === 0) rights = 0;
      if ((high & NO_EXECUTE) !== 0) rights &= ~FETCH;
      const isLarge = (low & LARGE) !== 0 && level !== 0;
      if (isLarge && level === 3) return this.#fail(NptError.present | NptError.reserved, access);
      if (level !== 0 && !isLarge) {
        const next = (low & 0xffff_f000) >>> 0;
        if ((high & 0xf_ffff) !== this.#bank || next >= this.#bankBytes) {
          // The bus answers all ones, of which PS in the highest level and NX are reserved
          const address = ((high & 0xf_ffff) * SPAN + next).toString(16);
          this.#log(`NPT: table at ${address} lies outside bank ${this.#bank}; reads as all ones`);
          return this.#fail(NptError.present | NptError.reserved, access);
        }
        if ((low & ACCESSED) === 0) u32[at] = low | ACCESSED;
        table = next;
        continue;
      }
      const pageBits = 12 + level * 9;
      const inPage = 2 ** pageBits - 1;
      // Bit 12 of a large page is its PAT bit
      if (isLarge && (low & inPage & 0xffff_e000) !== 0) return this.#fail(NptError.present | NptError.reserved, access);
      if ((rights & access) !== access) return this.#fail(NptError.present, access);
      return this.#finish(at, low, high, rights, pageBits, gpaLow, gpaHigh, access, number, cacheEntry);
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
    cacheEntry: number,
  ): true {
    const flags = low | ACCESSED | ((access & WRITE) !== 0 ? DIRTY : 0);
    if (flags !== low) this.#u32[at] = flags;
    // A clean page is handed out read-only, so that its first write comes here
    const rights = (flags & DIRTY) === 0 ? rightsOfWalk & ~WRITE : rightsOfWalk;
    const inPage = 2 ** pageBits - 1;
    const offset = ((((low & 0xffff_f000) >>> 0) & ~inPage) | (gpaLow & inPage)) >>> 0;
    const { page } = this;
    page.pageBytes = inPage + 1;
    if ((high & 0xf_ffff) !== this.#bank || offset >= this.#bankBytes || offset < this.#firstUsable) {
      const address = (high & 0xf_ffff) * SPAN + offset;
      this.#absent.answer(page, this.#memory as MemoryBank, address, gpaHigh * SPAN + gpaLow, access);
      return true;
    }
    page.hpa = (this.#bank * SPAN + offset) as Hpa;
    page.rights = rights;
    if (gpaHigh < 0x1000) {
      const cache = this.#cache;
      cache[cacheEntry] = number + 1;
      cache[cacheEntry + 1] = this.#tag;
      cache[cacheEntry + 2] = (offset & 0xffff_f000) >>> 0;
      cache[cacheEntry + 3] = rights | (pageBits << 3);
    }
    return true;
  }
}
