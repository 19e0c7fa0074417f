/** Values of the statistics of one VM or vCPU. */
import { bytesOfSlab, type Section, STATS_NAME_BYTES, type VcpuStatistics, VmStatistics } from "@mkvm/kvm-abi";
import { readList, writeList } from "../portable/section-lists.ts";
import { valueAt } from "./entry-shapes.ts";
import { HISTOGRAM_BUCKETS } from "./row.ts";
import { compareNames, DATA_OFFSET, headWithId, type StatisticsTable, WORD_BYTES } from "./table.ts";

const { bucket: BUCKET, value: VALUE } = VmStatistics.entry.offsets;

/** A value on its way, of a name that this version does not know. */
interface KeptEntry {
  readonly name: Uint8Array;
  readonly bucket: number;
  readonly value: number;
}

const TWO_32 = 0x1_0000_0000;

/** Bucket of a time in a log2 histogram: 0 for 0, else the number of its bits, at most the last one. */
export function histogramBucket(ns: number): number {
  return ns >= 2 ** (HISTOGRAM_BUCKETS - 1) ? HISTOGRAM_BUCKETS - 1 : 32 - Math.clz32(ns);
}

export class Statistics {
  readonly #table: StatisticsTable;
  readonly #id: string;
  /** Made when somebody reads it: it is long, and a VM that moves gets new ones. */
  #head: Uint8Array | undefined;
  /** Whole numbers, exact below 2 ** 53: a plain increment is all that an event costs. */
  readonly words: Float64Array;
  /** Entries from the other side of a move whose names this version does not know. */
  #kept: KeptEntry[] = [];

  constructor(table: StatisticsTable, id: string) {
    this.#table = table;
    this.#id = id;
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
    this.#head ??= headWithId(this.#table, this.#id);
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

  /** The portable section, in canonical order: a VM stands still while it is made, so it is written as bytes. */
  save(layout: typeof VmStatistics | typeof VcpuStatistics, instance: number): Section {
    const { words } = this;
    const { travellers, shapes } = this.#table;
    if (this.#kept.length > 0) return this.#saveAll(layout, instance);
    const used: number[] = [];
    for (const traveller of travellers) {
      const end = traveller.word + traveller.words;
      for (let word = traveller.word; word < end; word++) if (words[word] !== 0) used.push(word);
    }
    const shape = shapes.ofWords(used);
    if (shape === undefined) {
      const section = this.#saveAll(layout, instance);
      shapes.add(used, section.bytes);
      return section;
    }
    const bytes = bytesOfSlab(shape.bytes.length);
    bytes.set(shape.bytes);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let entry = 0; entry < used.length; entry++) writeValue(view, valueAt(entry), words[used[entry]!]!);
    const { name, version, required } = layout;
    return { name, instance, version, required, bytes };
  }
  /** Name by name, beside entries that only the next version may know. */
  #saveAll(layout: typeof VmStatistics | typeof VcpuStatistics, instance: number): Section {
    const entries = [...this.#kept];
    for (const { name, word, words } of this.#table.travellers) {
      for (let bucket = 0; bucket < words; bucket++) {
        const value = this.words[word + bucket]!;
        if (value !== 0) entries.push({ name, bucket, value });
      }
    }
    entries.sort((a, b) => compareNames(a.name, b.name) || a.bucket - b.bucket);
    return writeList(layout, instance, entries.length, (view, at, index) => {
      const { name, bucket, value } = entries[index]!;
      writeEntry(view, at, name, bucket, value);
    });
  }

  /** Takes the values of the section, and keeps what it does not know for the next move. A sentence: why they cannot be taken. */
  restore(layout: typeof VmStatistics | typeof VcpuStatistics, section: Section): string | undefined {
    const entries = readList(layout, section);
    if (typeof entries === "string") return entries;
    const { view } = entries;
    const { travellers, shapes } = this.#table;
    // Most are of one word, for which a call of `fill` costs more than the word
    for (const { word, words } of travellers) for (let at = word; at < word + words; at++) this.words[at] = 0;
    this.#kept = [];
    const shape = shapes.ofBytes(section.bytes);
    if (shape !== undefined) {
      for (let entry = 0; entry < entries.count; entry++) this.words[shape.words[entry]!] = readValue(view, valueAt(entry));
      return undefined;
    }
    // Both are in the order of names, so each name is looked at once: a VM stands still meanwhile
    let next = 0;
    for (let index = 0; index < entries.count; index++) {
      const at = entries.at + index * layout.entry.sizeBytes;
      while (next < travellers.length && compareNameAt(travellers[next]!.name, view, at) < 0) next++;
      const found = travellers[next];
      const bucket = view.getUint32(at + BUCKET, true);
      const value = readValue(view, at + VALUE);
      const isKnown = found !== undefined && bucket < found.words && compareNameAt(found.name, view, at) === 0;
      if (isKnown) this.words[found.word + bucket] = value;
      else this.#kept.push({ name: VmStatistics.entry.get(view, "name", at), bucket, value });
    }
    return undefined;
  }
}

function writeEntry(view: DataView, at: number, name: Uint8Array, bucket: number, value: number): void {
  for (let byte = 0; byte < STATS_NAME_BYTES && name[byte] !== 0; byte++) view.setUint8(at + byte, name[byte]!);
  view.setUint32(at + BUCKET, bucket, true);
  writeValue(view, at + VALUE, value);
}
function writeValue(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % TWO_32, true);
  view.setUint32(at + 4, value / TWO_32, true);
}
function readValue(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO_32;
}

/** As compareNames, of a name that is still in its section. */
function compareNameAt(name: Uint8Array, view: DataView, at: number): number {
  for (let byte = 0; byte < name.length; byte++) {
    const difference = name[byte]! - view.getUint8(at + byte);
    if (difference !== 0 || name[byte] === 0) return difference;
  }
  return 0;
}
