/** The binary format of KVM_GET_STATS_FD into plain data. Source: Linux, Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. */
import { KvmStatsDesc, KvmStatsHeader, StatsBase, StatsType, StatsUnit } from "@mkvm/kvm-abi";
import type { Statistic, StatisticKind, StatisticUnit } from "../control/types.ts";
import { HostError } from "../errors.ts";

/** Reads from the file: bytes put into `into`, 0 at its end, or a negative errno. */
export type ReadAt = (into: Uint8Array, offsetBytes: number) => number;

export interface StatisticsFileContent {
  /** "kvm-1", "kvm-1/vcpu-0". */
  id: string;
  statistics: Statistic[];
}

const KINDS: Readonly<Record<number, StatisticKind>> = {
  [StatsType.KVM_STATS_TYPE_CUMULATIVE]: "cumulative",
  [StatsType.KVM_STATS_TYPE_INSTANT]: "instant",
  [StatsType.KVM_STATS_TYPE_PEAK]: "peak",
  [StatsType.KVM_STATS_TYPE_LINEAR_HIST]: "linear-histogram",
  [StatsType.KVM_STATS_TYPE_LOG_HIST]: "log-histogram",
};
const UNITS: Readonly<Record<number, StatisticUnit>> = {
  [StatsUnit.KVM_STATS_UNIT_NONE]: "none",
  [StatsUnit.KVM_STATS_UNIT_BYTES]: "bytes",
  [StatsUnit.KVM_STATS_UNIT_SECONDS]: "seconds",
  [StatsUnit.KVM_STATS_UNIT_CYCLES]: "cycles",
  [StatsUnit.KVM_STATS_UNIT_BOOLEAN]: "boolean",
};

/** Bounds against a header that is not to be trusted. */
const MOST_DESCRIPTORS = 4096;
const LONGEST_NAME = 1024;
const WORD_BYTES = 8;

/**
 * All statistics of a file.
 * @throws HostError EIO when the file breaks the format: it says how
 */
export function readBinaryStatistics(read: ReadAt): StatisticsFileContent {
  const header = KvmStatsHeader.read(readExactly(read, 0, KvmStatsHeader.sizeBytes, "header"));
  if (header.flags !== 0) throw broken(`header flags 0x${header.flags.toString(16)} are not known`);
  if (header.name_size === 0 || header.name_size > LONGEST_NAME) throw broken(`names take ${header.name_size} bytes`);
  if (header.num_desc > MOST_DESCRIPTORS) throw broken(`there are ${header.num_desc} descriptors`);
  const id = textOf(readExactly(read, header.id_offset, header.name_size, "id"));
  const stride = KvmStatsDesc.sizeBytes + header.name_size;
  const descriptors = readExactly(read, header.desc_offset, header.num_desc * stride, "descriptors");
  const layout = Array.from({ length: header.num_desc }, (_, index) => {
    const at = index * stride;
    const name = textOf(descriptors.subarray(at + KvmStatsDesc.sizeBytes, at + stride));
    const descriptor = KvmStatsDesc.read(descriptors, at);
    if (descriptor.offset % WORD_BYTES !== 0) throw broken(`${name} lies at ${descriptor.offset}`);
    return { name, ...descriptor };
  });
  const end = layout.reduce((most, each) => Math.max(most, each.offset + each.size * WORD_BYTES), 0);
  if (end > MOST_DESCRIPTORS * 0x1000) throw broken(`the data takes ${end} bytes`);
  const data = readExactly(read, header.data_offset, end, "data");
  const words = new DataView(data.buffer);
  return { id, statistics: layout.map((each) => statisticOf(each, words)) };
}

function statisticOf(
  each: { name: string; flags: number; exponent: number; size: number; offset: number; bucket_size: number },
  words: DataView,
): Statistic {
  const kind = KINDS[each.flags & StatsType.KVM_STATS_TYPE_MASK];
  const unit = UNITS[each.flags & StatsUnit.KVM_STATS_UNIT_MASK];
  if (kind === undefined || unit === undefined) throw broken(`${each.name} has flags 0x${each.flags.toString(16)}`);
  const base = (each.flags & StatsBase.KVM_STATS_BASE_MASK) === StatsBase.KVM_STATS_BASE_POW2 ? 2 : 10;
  const values = Array.from({ length: each.size }, (_, index) =>
    Number(words.getBigUint64(each.offset + index * WORD_BYTES, true)),
  );
  const common = { name: each.name, unit, base, exponent: each.exponent } as const;
  if (kind === "linear-histogram" || kind === "log-histogram") {
    return { ...common, kind, buckets: values, bucketSize: each.bucket_size };
  }
  if (values.length !== 1) throw broken(`${each.name} has ${values.length} values`);
  return { ...common, kind, value: values[0]! };
}

function readExactly(read: ReadAt, offset: number, length: number, what: string): Uint8Array {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const count = read(bytes.subarray(done), offset + done);
    if (count < 0) throw broken(`reading its ${what} failed with errno ${-count}`);
    if (count === 0) throw broken(`its ${what} ends after ${done} of ${length} bytes`);
    done += count;
  }
  return bytes;
}

function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

function broken(why: string): HostError {
  return new HostError("EIO", `the module's statistics cannot be read: ${why}`);
}
