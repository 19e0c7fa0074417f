/**
 * For the hardware sanitizer: pages that the kernel's allocator has back. Nothing that a CPU uses in guest mode may lead to them: the
 * processor walks tables and reads bitmaps whenever it likes, and finds there what the next owner of the page puts into it.
 */
import type { MemoryBank } from "../physical-memory.ts";
import { Sampling } from "./sampling.ts";

/** Walks through all tables, at entries after pages were freed. */
const FIRST_CHECKS = 256;
const SAMPLE = 16;

interface FreedOfBank {
  /** 1 for each page that is free and was not always. */
  readonly isFree: Uint8Array;
  /** How often pages were freed. */
  changes: number;
  /** `changes` when a root's tables were looked at last, by address. */
  readonly checked: Map<number, number>;
}

export class FreedPages {
  readonly #banks = new Map<number, FreedOfBank>();
  readonly #sampling = new Sampling(FIRST_CHECKS, SAMPLE);

  freed(bank: MemoryBank, offset: number, count: number): void {
    let of = this.#banks.get(bank.id);
    if (of === undefined) {
      of = { isFree: new Uint8Array(Math.ceil(bank.sizeBytes / 4096)), changes: 0, checked: new Map() };
      this.#banks.set(bank.id, of);
    }
    of.isFree.fill(1, offset >>> 12, (offset >>> 12) + count);
    of.changes++;
  }
  allocated(bank: number, offset: number, count: number): void {
    this.#banks.get(bank)?.isFree.fill(0, offset >>> 12, (offset >>> 12) + count);
  }
  /** The bank goes away. */
  forget(bank: number): void {
    this.#banks.delete(bank);
  }

  isFree(bank: number, offset: number): boolean {
    return this.#banks.get(bank)?.isFree[offset >>> 12] === 1;
  }

  /**
   * A byte for each page of the bank, 1 where it is free, when pages were freed since the tables under `root` were looked at last;
   * undefined when there is nothing to look for.
   */
  toCheck(bank: number, root: number): Uint8Array | undefined {
    const of = this.#banks.get(bank);
    if (of === undefined || of.checked.get(root) === of.changes) return undefined;
    of.checked.set(root, of.changes);
    return this.#sampling.isDue() ? of.isFree : undefined;
  }
}
