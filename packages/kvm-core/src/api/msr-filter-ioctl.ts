/** KVM_X86_SET_MSR_FILTER, with the checks of Linux's kvm_vm_ioctl_set_msr_filter in their order. */
import { Errno, type Hva, KvmMsrFilter, MsrFilterFlag } from "@mkvm/kvm-abi";
import { filterBitmap, MsrFilter, type MsrFilterRange } from "../guest/msr-filter.ts";
import { readUser } from "./user-copy.ts";
import type { VmUnderControl } from "./vm-state-ioctls.ts";

const RANGE_FLAGS = MsrFilterFlag.KVM_MSR_FILTER_READ | MsrFilterFlag.KVM_MSR_FILTER_WRITE;
const LONG_BITS = 64;

/** 0 or a negative errno; on an error the filter stays as it was. */
export function setMsrFilter(vm: VmUnderControl, argument: Hva): number {
  const { process, settings } = vm;
  const filter = readUser(process, argument, KvmMsrFilter);
  if (typeof filter === "number") return filter;
  if ((filter.flags & ~MsrFilterFlag.KVM_MSR_FILTER_DEFAULT_DENY) !== 0) return -Errno.EINVAL;
  const defaultAllow = (filter.flags & MsrFilterFlag.KVM_MSR_FILTER_DEFAULT_DENY) === 0;
  const used = filter.ranges.filter(({ nmsrs }) => nmsrs !== 0);
  if (used.length === 0 && !defaultAllow) return -Errno.EINVAL;
  const ranges: MsrFilterRange[] = [];
  for (const { flags, base, nmsrs, bitmap } of used) {
    if (flags === 0 || (flags & ~RANGE_FLAGS) !== 0) return -Errno.EINVAL;
    const length = Math.ceil(nmsrs / LONG_BITS) * (LONG_BITS / 8);
    if (length > MsrFilterFlag.KVM_MSR_FILTER_MAX_BITMAP_SIZE) return -Errno.EINVAL;
    const bits = process.memory.read(Number(bitmap), length);
    if (bits === undefined) return -Errno.EFAULT;
    ranges.push({ flags, base, count: nmsrs, bitmap: filterBitmap(bits, nmsrs) });
  }
  settings.msrFilter = new MsrFilter(defaultAllow, ranges);
  vm.msrFilterChanged();
  return 0;
}
