/**
 * Pages of the bank that decoded code came from: which blocks lie in each, which 64-byte granules they cover, and what the bytes
 * were when they were decoded, so that changes by whoever writes past the CPU (devices, software in root mode) are noticed.
 */
export const PAGE_BYTES = 4096;
const GRANULE_LOG2 = 6;
const GRANULES = PAGE_BYTES >>> GRANULE_LOG2;
const GRANULE_WORDS = 1 << (GRANULE_LOG2 - 2);
const FIRST_SLOTS = 8;

export class CodePage {
  /** Bank offset of the page. */
  readonly offset: number;
  /** Headers by key: offset in the page and mode. */
  readonly blocks = new Map<number, number>();
  /** Headers of blocks that begin in another page and end in this one. */
  readonly tails = new Set<number>();
  /** Epoch of trust (see blocks.ts) in which the bytes were last compared. */
  checkedEpoch = -1;
  /** By granule: 0, or 1 more than the number of its copy. */
  readonly #granules = new Uint8Array(GRANULES);
  /** Granules by number of their copy. */
  readonly #covered = new Uint8Array(GRANULES);
  /** Copies of covered granules, one after the other: few granules of most pages hold code that ran. */
  #copies = new Uint32Array(FIRST_SLOTS * GRANULE_WORDS);
  #copied = 0;

  constructor(offset: number) {
    this.offset = offset;
  }

  get isEmpty(): boolean {
    return this.blocks.size === 0 && this.tails.size === 0;
  }

  /** `bytes` from `start` (bank offset, in this page) were decoded. */
  cover(start: number, bytes: number, bank: Uint32Array): void {
    const first = (start - this.offset) >>> GRANULE_LOG2;
    const last = (start - this.offset + bytes - 1) >>> GRANULE_LOG2;
    const base = this.offset >>> 2;
    for (let granule = first; granule <= last; granule++) {
      const copy = this.#copyOf(granule) * GRANULE_WORDS;
      const from = base + granule * GRANULE_WORDS;
      for (let word = 0; word < GRANULE_WORDS; word++) this.#copies[copy + word] = bank[from + word];
    }
  }
  /** Number of the granule's copy, a new one if need be. */
  #copyOf(granule: number): number {
    if (this.#granules[granule] === 0) {
      this.#covered[this.#copied] = granule;
      this.#granules[granule] = ++this.#copied;
      if (this.#copied * GRANULE_WORDS > this.#copies.length) {
        const larger = new Uint32Array(2 * this.#copies.length);
        larger.set(this.#copies);
        this.#copies = larger;
      }
    }
    return this.#granules[granule] - 1;
  }
  uncoverAll(): void {
    this.#granules.fill(0);
    this.#copied = 0;
  }
  isCovered(start: number, bytes: number): boolean {
    const last = (start - this.offset + bytes - 1) >>> GRANULE_LOG2;
    for (let granule = (start - this.offset) >>> GRANULE_LOG2; granule <= last; granule++) {
      if (this.#granules[granule] !== 0) return true;
    }
    return false;
  }
  /** False when covered bytes are no longer what was decoded. */
  isUnchanged(bank: Uint32Array): boolean {
    const base = this.offset >>> 2;
    const copies = this.#copies;
    for (let number = 0; number < this.#copied; number++) {
      const copy = number * GRANULE_WORDS;
      const from = base + this.#covered[number] * GRANULE_WORDS;
      // Most pages are unchanged: one branch for a granule, not one for each word
      let changed = 0;
      for (let word = 0; word < GRANULE_WORDS; word++) changed |= copies[copy + word] ^ bank[from + word];
      if (changed !== 0) return false;
    }
    return true;
  }
}
