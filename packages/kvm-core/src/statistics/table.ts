/** The binary layout that rows make: what KVM_GET_STATS_FD gives to read, but for the values. */
import { KvmStatsDesc, KvmStatsHeader, STATS_NAME_BYTES, StatsBase, StatsType, StatsUnit } from "@mkvm/kvm-abi";
import { EntryShapes } from "./entry-shapes.ts";
import type { Row } from "./row.ts";

const TYPES = {
  cumulative: StatsType.KVM_STATS_TYPE_CUMULATIVE,
  instant: StatsType.KVM_STATS_TYPE_INSTANT,
  peak: StatsType.KVM_STATS_TYPE_PEAK,
  "log-histogram": StatsType.KVM_STATS_TYPE_LOG_HIST,
} as const;
const UNITS = {
  none: StatsUnit.KVM_STATS_UNIT_NONE,
  seconds: StatsUnit.KVM_STATS_UNIT_SECONDS,
  boolean: StatsUnit.KVM_STATS_UNIT_BOOLEAN,
} as const;

const ID_OFFSET = KvmStatsHeader.sizeBytes;
const DESCRIPTOR_OFFSET = ID_OFFSET + STATS_NAME_BYTES;
const DESCRIPTOR_BYTES = KvmStatsDesc.sizeBytes + STATS_NAME_BYTES;
/**
 * The data block begins here whatever the number of descriptors, and rows are only ever added at the end. So a reader that keeps
 * descriptors, as QEMU does, reads right values after its VM has moved to a module with more rows, and back.
 */
export const DATA_OFFSET = 0x6000;
export const WORD_BYTES = 8;

/** A row that moves with its VM. Instant values say how things are: the new side of a move finds out by itself. */
export interface Traveller {
  /** As in the portable section. Shared: nobody writes to it. */
  readonly name: Uint8Array;
  readonly word: number;
  readonly words: number;
}

export interface StatisticsTable<Name extends string = string> {
  readonly rows: readonly Row[];
  /** Index of the first value of each statistic in the data block. */
  readonly word: Readonly<Record<Name, number>>;
  readonly totalWords: number;
  /** Rows that travel, by name. */
  readonly travellers: readonly Traveller[];
  /** Everything before the data block, with an empty id. */
  readonly head: Uint8Array;
  /** What sections of it have looked like. */
  readonly shapes: EntryShapes;
}

/** Lays rows out. RangeError for a name that is too long or comes twice, and when the descriptors do not fit. */
export function statisticsTable<Name extends string>(rows: readonly Row<Name>[]): StatisticsTable<Name> {
  const end = DESCRIPTOR_OFFSET + rows.length * DESCRIPTOR_BYTES;
  if (end > DATA_OFFSET) throw new RangeError(`${rows.length} descriptors do not fit before the data block`);
  const head = new Uint8Array(DATA_OFFSET);
  KvmStatsHeader.write(head, {
    name_size: STATS_NAME_BYTES,
    num_desc: rows.length,
    id_offset: ID_OFFSET,
    desc_offset: DESCRIPTOR_OFFSET,
    data_offset: DATA_OFFSET,
  });
  const word: Partial<Record<Name, number>> = {};
  let words = 0;
  rows.forEach((row, index) => {
    if (row.name in word) throw new RangeError(`two statistics are called ${row.name}`);
    const at = DESCRIPTOR_OFFSET + index * DESCRIPTOR_BYTES;
    const flags = TYPES[row.kind] | UNITS[row.unit] | StatsBase.KVM_STATS_BASE_POW10;
    KvmStatsDesc.write(head, { flags, exponent: row.exponent, size: row.words, offset: words * WORD_BYTES }, at);
    writeName(head, at + KvmStatsDesc.sizeBytes, row.name);
    word[row.name] = words;
    words += row.words;
  });
  const travellers = rows
    .filter(({ kind }) => kind !== "instant")
    .map((row) => ({ name: encodeName(row.name), word: word[row.name]!, words: row.words }))
    .sort((a, b) => compareNames(a.name, b.name));
  return { rows, word: word as Record<Name, number>, totalWords: words, travellers, head, shapes: new EntryShapes() };
}

/** The bytes before the data block of one VM or vCPU. */
export function headWithId(table: StatisticsTable, id: string): Uint8Array {
  const head = table.head.slice();
  writeName(head, ID_OFFSET, id);
  return head;
}

/** ASCII, with at least one zero behind it. */
function writeName(bytes: Uint8Array, at: number, name: string): void {
  if (name.length >= STATS_NAME_BYTES) throw new RangeError(`the name ${name} is longer than ${STATS_NAME_BYTES - 1} bytes`);
  for (let index = 0; index < name.length; index++) bytes[at + index] = name.charCodeAt(index);
}

function encodeName(name: string): Uint8Array {
  const bytes = new Uint8Array(STATS_NAME_BYTES);
  for (let index = 0; index < name.length; index++) bytes[index] = name.charCodeAt(index);
  return bytes;
}

/** Negative, 0 or positive, as the names come in the section. Both are as long as the field, padded with zeros. */
export function compareNames(a: Uint8Array, b: Uint8Array): number {
  for (let at = 0; at < a.length; at++) {
    const difference = a[at]! - b[at]!;
    if (difference !== 0 || a[at] === 0) return difference;
  }
  return 0;
}
