/**
 * What a descriptor of KVM_GET_STATS_FD gives to read: a header, an id string, descriptors, and a block of 64-bit values. Source:
 * Linux, Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. Offsets in the header are from the start of the file.
 */
import { i16, struct, u16, u32 } from "../layout.ts";

export const KvmStatsHeader = struct("kvm_stats_header", 24, {
  flags: u32(0),
  name_size: u32(4), // bytes of the id string and of each name, padding with zeros included
  num_desc: u32(8),
  id_offset: u32(12),
  desc_offset: u32(16),
  data_offset: u32(20),
});

/** `name_size` bytes of name follow each: descriptors are `sizeBytes + name_size` apart. */
export const KvmStatsDesc = struct(
  "kvm_stats_desc",
  16,
  {
    flags: u32(0), // StatsType | StatsUnit | StatsBase
    exponent: i16(4), // values are in base ** exponent of the unit
    size: u16(6), // values: 1, or the buckets of a histogram
    offset: u32(8), // bytes from the start of the data block
    bucket_size: u32(12), // linear histograms: width of a bucket
  },
  { name: "name", strideBytes: 1 },
);

/** Bytes of every name as Linux has it (KVM_STATS_NAME_SIZE, which its header for user space does not name). */
export const STATS_NAME_BYTES = 48;

export const StatsType = {
  KVM_STATS_TYPE_CUMULATIVE: 0x0,
  KVM_STATS_TYPE_INSTANT: 0x1,
  KVM_STATS_TYPE_PEAK: 0x2,
  KVM_STATS_TYPE_LINEAR_HIST: 0x3,
  KVM_STATS_TYPE_LOG_HIST: 0x4,
  KVM_STATS_TYPE_MAX: 0x4,
  KVM_STATS_TYPE_MASK: 0xf,
} as const;
export const StatsUnit = {
  KVM_STATS_UNIT_NONE: 0x00,
  KVM_STATS_UNIT_BYTES: 0x10,
  KVM_STATS_UNIT_SECONDS: 0x20,
  KVM_STATS_UNIT_CYCLES: 0x30,
  KVM_STATS_UNIT_BOOLEAN: 0x40,
  KVM_STATS_UNIT_MAX: 0x40,
  KVM_STATS_UNIT_MASK: 0xf0,
} as const;
export const StatsBase = {
  KVM_STATS_BASE_POW10: 0x000,
  KVM_STATS_BASE_POW2: 0x100,
  KVM_STATS_BASE_MAX: 0x100,
  KVM_STATS_BASE_MASK: 0xf00,
} as const;
