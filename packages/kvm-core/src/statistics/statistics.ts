/** Values of the statistics of one VM or vCPU. */
import { STATS_NAME_BYTES, type StructValue, type VmStatistics } from "@mkvm/kvm-abi";
import { HISTOGRAM_BUCKETS, type Row } from "./row.ts";
import { DATA_OFFSET, headWithId, type StatisticsTable, WORD_BYTES } from "./table.ts";

export type StatisticEntry = StructValue<(typeof VmStatistics)["entry"]["fields"]>;

const TWO_32 = 0x1_0000_0000;

/** Bucket of a time in a log2 histogram: 0 for 0, else the number of its bits, at most the last one. */
export function histogramBucket(ns: number): number {
  return ns >= 2 ** (HISTOGRAM_BUCKETS - 1) ? HISTOGRAM_BUCKETS - 1 : 32 - Math.clz32(ns);
}

/** Instant values say how things are: the new side of a move finds out by itself. */
const travels = (row: Row): boolean => row.kind !== "instant";

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
    const entries = [...this.#kept];
    for (const row of this.#table.rows) {
      if (!travels(row)) continue;
      const word = this.#table.word[row.name]!;
      for (let bucket = 0; bucket < row.words; bucket++) {
        const value = this.words[word + bucket]!;
        if (value !== 0) entries.push({ name: encodeName(row.name), bucket, reserved: 0, value: BigInt(value) });
      }
    }
    return entries
      .map((entry) => ({ entry, name: decodeName(entry.name) }))
      .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.entry.bucket - b.entry.bucket))
      .map(({ entry }) => entry);
  }

  /** Takes the values of the section, and keeps what it does not know for the next move. */
  restore(entries: readonly StatisticEntry[]): void {
    const rows = new Map(this.#table.rows.map((row) => [row.name, row]));
    for (const row of rows.values()) {
      if (travels(row)) this.words.fill(0, this.#table.word[row.name], this.#table.word[row.name]! + row.words);
    }
    this.#kept = [];
    for (const entry of entries) {
      const row = rows.get(decodeName(entry.name));
      if (row === undefined || !travels(row) || entry.bucket >= row.words) this.#kept.push(entry);
      else this.words[this.#table.word[row.name]! + entry.bucket] = Number(entry.value);
    }
  }
}

function encodeName(name: string): Uint8Array {
  const bytes = new Uint8Array(STATS_NAME_BYTES);
  for (let index = 0; index < name.length; index++) bytes[index] = name.charCodeAt(index);
  return bytes;
}
function decodeName(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? bytes.length : end));
}
