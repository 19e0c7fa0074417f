/** Pre-order walk over the entries of a second-level table that map a range of guest frames. */
import { BANK_SPAN, framesOf, LEVEL_4K, TDP_ADDRESS, TDP_LARGE, type TdpFormat } from "./tdp-entry.ts";

/**
 * Stands on one entry at a time. `advance` goes down into the table that the entry links, if there is one and `minLevel` allows,
 * else to the next entry, upwards at the end of a table. The walk re-reads the entry on the way down, so that what the caller has
 * changed in it counts.
 */
export class TdpIterator {
  /** Bank offset of the entry. */
  entry = 0;
  level: number;
  /** First guest frame that the entry maps. */
  gfn = 0;
  done = false;
  readonly #words: Uint32Array;
  readonly #present: number;
  readonly #minLevel: number;
  readonly #endGfn: number;
  /** Bank offset of the table at each level on the way. */
  readonly #tables: number[];
  readonly #levels: number;
  #target: number;

  /** `words`: the bank. `root`: physical address of the top table. Frames `startGfn` up to but not `endGfn`. */
  constructor(words: Uint32Array, format: TdpFormat, root: number, startGfn: number, endGfn: number, minLevel = LEVEL_4K) {
    this.#words = words;
    this.#present = format.present;
    this.#minLevel = minLevel;
    this.#endGfn = endGfn;
    this.#target = startGfn;
    const { levels } = format;
    this.#levels = levels;
    this.level = levels;
    this.#tables = new Array<number>(levels + 1).fill(0);
    this.#tables[levels] = root % BANK_SPAN;
    this.#stand(levels);
    if (startGfn >= endGfn) this.done = true;
  }

  get low(): number {
    return this.#words[this.entry >>> 2]!;
  }
  get present(): boolean {
    return (this.low & this.#present) !== 0;
  }
  /** Present, and maps memory rather than a table. */
  get leaf(): boolean {
    const { low } = this;
    return (low & this.#present) !== 0 && (this.level === LEVEL_4K || (low & TDP_LARGE) !== 0);
  }
  get linksTable(): boolean {
    return this.present && !this.leaf;
  }

  advance(): void {
    if (this.linksTable && this.level > this.#minLevel) {
      this.#tables[this.level - 1] = (this.low & TDP_ADDRESS) >>> 0;
      this.#stand(this.level - 1);
      return;
    }
    this.#target = this.gfn + framesOf(this.level);
    if (this.#target >= this.#endGfn) {
      this.done = true;
      return;
    }
    // Up as far as the next frame is the first one of an entry above
    let { level } = this;
    while (level < this.#levels && this.#target % framesOf(level + 1) === 0) level++;
    this.#stand(level);
  }

  #stand(level: number): void {
    const frames = framesOf(level);
    this.level = level;
    this.gfn = this.#target - (this.#target % frames);
    this.entry = this.#tables[level]! + (Math.floor(this.#target / frames) % 512) * 8;
  }
}
