/** Model-specific registers: lists, values, filters, machine-check banks. */
import { bytes, struct, structs, u8, u32, u64 } from "../layout.ts";

export const KvmMsrEntry = struct("kvm_msr_entry", 16, { index: u32(0), reserved: u32(4), data: u64(8) });
export const KvmMsrs = struct("kvm_msrs", 8, { nmsrs: u32(0), pad: u32(4) }, { name: "entries", strideBytes: 16 });
export const KvmMsrList = struct("kvm_msr_list", 4, { nmsrs: u32(0) }, { name: "indices", strideBytes: 4 });

export const KVM_MSR_FILTER_MAX_RANGES = 16;
export const KvmMsrFilterRange = struct("kvm_msr_filter_range", 24, {
  flags: u32(0), // MsrFilterFlag
  nmsrs: u32(4), // bits in the bitmap
  base: u32(8),
  _pad: u32(12),
  bitmap: u64(16), // user pointer; 1 allows, 0 denies
});
export const KvmMsrFilter = struct("kvm_msr_filter", 392, {
  flags: u32(0),
  _pad: u32(4),
  ranges: structs(8, KvmMsrFilterRange, KVM_MSR_FILTER_MAX_RANGES),
});
export const MsrFilterFlag = {
  KVM_MSR_FILTER_READ: 1,
  KVM_MSR_FILTER_WRITE: 2,
  KVM_MSR_FILTER_DEFAULT_ALLOW: 0,
  KVM_MSR_FILTER_DEFAULT_DENY: 1,
  KVM_MSR_FILTER_MAX_BITMAP_SIZE: 0x600,
} as const;
export const MsrExitReason = {
  KVM_MSR_EXIT_REASON_INVAL: 1,
  KVM_MSR_EXIT_REASON_UNKNOWN: 2,
  KVM_MSR_EXIT_REASON_FILTER: 4,
} as const;

/** KVM_X86_SET_MCE. */
export const KvmX86Mce = struct("kvm_x86_mce", 64, {
  status: u64(0),
  addr: u64(8),
  misc: u64(16),
  mcg_status: u64(24),
  bank: u8(32),
  pad1: bytes(33, 7),
  pad2: bytes(40, 24),
});
