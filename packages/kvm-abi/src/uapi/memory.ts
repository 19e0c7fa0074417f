/** Guest memory: slots, dirty logs, coalesced MMIO. */
import { array, bytes, struct, u32, u64, union } from "../layout.ts";

/** KVM_SET_USER_MEMORY_REGION. */
export const KvmUserspaceMemoryRegion = struct("kvm_userspace_memory_region", 32, {
  slot: u32(0), // bits 15:0 slot, bits 31:16 address space
  flags: u32(4), // MemoryFlag
  guest_phys_addr: u64(8), // bytes, page aligned
  memory_size: u64(16), // bytes; 0 deletes the slot
  userspace_addr: u64(24),
});

/** KVM_SET_USER_MEMORY_REGION2, from Linux 6.8 on. */
export const KvmUserspaceMemoryRegion2 = struct("kvm_userspace_memory_region2", 160, {
  slot: u32(0),
  flags: u32(4),
  guest_phys_addr: u64(8),
  memory_size: u64(16),
  userspace_addr: u64(24),
  guest_memfd_offset: u64(32),
  guest_memfd: u32(40),
  pad1: u32(44),
  pad2: array(48, u64, 14),
});

export const MemoryFlag = { KVM_MEM_LOG_DIRTY_PAGES: 1, KVM_MEM_READONLY: 2, KVM_MEM_GUEST_MEMFD: 4 } as const;

export const KvmDirtyLog = struct("kvm_dirty_log", 16, {
  slot: u32(0),
  padding1: u32(4),
  dirty_bitmap: u64(8), // user pointer; one bit a page
});

export const KvmClearDirtyLog = struct("kvm_clear_dirty_log", 24, {
  slot: u32(0),
  num_pages: u32(4),
  first_page: u64(8),
  dirty_bitmap: u64(16), // user pointer
});

export const DirtyLogFlag = { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: 1, KVM_DIRTY_LOG_INITIALLY_SET: 2 } as const;

/** Entry of a dirty ring. */
export const KvmDirtyGfn = struct("kvm_dirty_gfn", 16, { flags: u32(0), slot: u32(4), offset: u64(8) });
export const DirtyGfnFlag = { KVM_DIRTY_GFN_F_DIRTY: 1, KVM_DIRTY_GFN_F_RESET: 2, KVM_DIRTY_GFN_F_MASK: 3 } as const;

export const KvmCoalescedMmioZone = struct("kvm_coalesced_mmio_zone", 16, {
  addr: u64(0),
  size: u32(8),
  _1: union(12, 4, { pad: u32(12), pio: u32(12) }, { anonymous: true }),
});
export const KvmCoalescedMmio = struct("kvm_coalesced_mmio", 24, {
  phys_addr: u64(0),
  len: u32(8),
  _1: union(12, 4, { pad: u32(12), pio: u32(12) }, { anonymous: true }),
  data: bytes(16, 8),
});
export const KvmCoalescedMmioRing = struct(
  "kvm_coalesced_mmio_ring",
  8,
  { first: u32(0), last: u32(4) },
  { name: "coalesced_mmio", strideBytes: 24 },
);

/** Pages of the vCPU mapping: kvm_run, the PIO data page, the coalesced MMIO ring. */
export const VcpuMapping = {
  KVM_PIO_PAGE_OFFSET: 1,
  KVM_COALESCED_MMIO_PAGE_OFFSET: 2,
  KVM_DIRTY_LOG_PAGE_OFFSET: 64,
} as const;
