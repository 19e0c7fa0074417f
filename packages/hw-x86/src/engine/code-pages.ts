/**
 * Pages of the bank that decoded code came from: which blocks lie in each, which 64-byte granules they cover, and what the bytes
 * were when they were decoded, so that changes by whoever writes past the CPU (devices, software in root mode) are noticed.
 */
export const PAGE_BYTES = 4096;
const GRANULE_LOG2 = 6;
const GRANULES = PAGE_BYTES >>> GRANULE_LOG2;

export class CodePage {
  /** Bank offset of the page. */
  readonly offset: number;
  /** Headers by key: offset in the page and mode. */
  readonly blocks = new Map<number, number>();
  /** Headers of blocks that begin in another page and end in this one. */
  readonly tails = new Set<number>();
  /** Epoch of trust (see blocks.ts) in which the bytes were last compared. */
  checkedEpoch = -1;
  readonly #granules = new Uint8Array(GRANULES);
  readonly #snapshot = new Uint32Array(PAGE_BYTES >>> 2);

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
    for (let granule = first; granule <= last; granule++) {
      this.#granules[granule] = 1;
      const from = granule << (GRANULE_LOG2 - 2);
      const base = this.offset >>> 2;
      for (let word = from; word < from + 16; word++) this.#snapshot[word] = bank[base + word];
    }
  }
  uncoverAll(): void {
    this.#granules.fill(0);
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
    for (let granule = 0; granule < GRANULES; granule++) {
      if (this.#granules[granule] === 0) continue;
      const from = granule << (GRANULE_LOG2 - 2);
      for (let word = from; word < from + 16; word++) if (this.#snapshot[word] !== bank[base + word]) return false;
    }
    return true;
  }
}
