/** Event descriptors tied to guest I/O and interrupts. */
import { bytes, i32, struct, u32, u64 } from "../layout.ts";

export const KvmIrqfd = struct("kvm_irqfd", 32, {
  fd: u32(0),
  gsi: u32(4),
  flags: u32(8),
  resamplefd: u32(12),
  pad: bytes(16, 16),
});
export const IrqfdFlag = { KVM_IRQFD_FLAG_DEASSIGN: 1, KVM_IRQFD_FLAG_RESAMPLE: 2 } as const;

export const KvmIoeventfd = struct("kvm_ioeventfd", 64, {
  datamatch: u64(0),
  addr: u64(8), // port or physical address
  len: u32(16), // 1, 2, 4 or 8 bytes; 0 ignores the length
  fd: i32(20),
  flags: u32(24), // IoeventfdFlag
  pad: bytes(28, 36),
});
export const IoeventfdFlag = {
  KVM_IOEVENTFD_FLAG_DATAMATCH: 1,
  KVM_IOEVENTFD_FLAG_PIO: 2,
  KVM_IOEVENTFD_FLAG_DEASSIGN: 4,
  KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY: 8,
  KVM_IOEVENTFD_VALID_FLAG_MASK: 31,
} as const;
