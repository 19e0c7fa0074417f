/** Values of the statistics of one VM or vCPU. */
import type { StructValue, VmStatistics } from "@mkvm/kvm-abi";
import { HISTOGRAM_BUCKETS } from "./row.ts";
import { compareNames, DATA_OFFSET, headWithId, type StatisticsTable, WORD_BYTES } from "./table.ts";

export type StatisticEntry = StructValue<(typeof VmStatistics)["entry"]["fields"]>;

const TWO_32 = 0x1_0000_0000;

/** Bucket of a time in a log2 histogram: 0 for 0, else the number of its bits, at most the last one. */
export function histogramBucket(ns: number): number {
  return ns >= 2 ** (HISTOGRAM_BUCKETS - 1) ? HISTOGRAM_BUCKETS - 1 : 32 - Math.clz32(ns);
}

export class Statistics {
  readonly #table: StatisticsTable;
  readonly #head: Uint8Array;
  /** Whole numbers, exact below 2 ** 53: a plain increment is all that an event costs. */
  readonly words: Float64Array;
  /** Entries from the other side of a move whose names this version does not know. */
  #kept: StatisticEntry[] = [];

  constructor(table: StatisticsTable, id: string) {
    this.#table = table;
    this.#head = headWithId(table, id);
    this.words = new Float64Array(table.totalWords);
  }

  /** `word`: the first bucket of a histogram. */
  addTime(word: number, ns: number): void {
    this.words[word + histogramBucket(ns)]!++;
  }

  /** read and pread of the file: bytes copied, 0 behind its end. */
  read(into: Uint8Array, offsetBytes: number): number {
    const endBytes = DATA_OFFSET + this.words.length * WORD_BYTES;
    const count = Math.min(into.length, endBytes - offsetBytes);
    if (count <= 0) return 0;
    const fromHead = this.#head.subarray(offsetBytes, offsetBytes + count);
    into.set(fromHead);
    if (fromHead.length < count)
      this.#readWords(into.subarray(fromHead.length, count), offsetBytes + fromHead.length - DATA_OFFSET);
    return count;
  }

  #readWords(into: Uint8Array, offsetBytes: number): void {
    const first = Math.floor(offsetBytes / WORD_BYTES);
    const end = Math.ceil((offsetBytes + into.length) / WORD_BYTES);
    const halves = new Uint32Array((end - first) * 2);
    for (let word = first; word < end; word++) {
      const value = this.words[word]!;
      halves[(word - first) * 2] = value % TWO_32;
      halves[(word - first) * 2 + 1] = value / TWO_32;
    }
    const from = offsetBytes - first * WORD_BYTES;
    into.set(new Uint8Array(halves.buffer).subarray(from, from + into.length));
  }

  /** Entries of the portable section, in canonical order. */
  save(): StatisticEntry[] {
    const entries: StatisticEntry[] = [];
    for (const { name, word, words } of this.#table.travellers) {
      for (let bucket = 0; bucket < words; bucket++) {
        const value = this.words[word + bucket]!;
        if (value !== 0) entries.push({ name, bucket, reserved: 0, value: BigInt(value) });
      }
    }
    if (this.#kept.length === 0) return entries;
    return [...this.#kept, ...entries]
      .map((entry) => ({ entry, name: decodeName(entry.name) }))
      .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.entry.bucket - b.entry.bucket))
      .map(({ entry }) => entry);
  }

  /** Takes the values of the section, and keeps what it does not know for the next move. */
  restore(entries: readonly StatisticEntry[]): void {
    const { travellers } = this.#table;
    for (const { word, words } of travellers) this.words.fill(0, word, word + words);
    this.#kept = [];
    // Both are in the order of names, so each name is looked at once: a VM stands still meanwhile
    let next = 0;
    for (const entry of entries) {
      while (next < travellers.length && compareNames(travellers[next]!.name, entry.name) < 0) next++;
      const found = travellers[next];
      const isKnown = found !== undefined && entry.bucket < found.words && compareNames(found.name, entry.name) === 0;
      if (isKnown) this.words[found.word + entry.bucket] = Number(entry.value);
      else this.#kept.push(entry);
    }
  }
}

function decodeName(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? bytes.length : end));
}
