/** The clock that guests of a VM share. */
import { array, struct, u32, u64 } from "../layout.ts";

export const KvmClockData = struct("kvm_clock_data", 48, {
  clock: u64(0), // ns
  flags: u32(8), // ClockFlag
  pad0: u32(12),
  realtime: u64(16), // ns since the epoch
  host_tsc: u64(24),
  pad: array(32, u32, 4),
});
export const ClockFlag = { KVM_CLOCK_TSC_STABLE: 2, KVM_CLOCK_REALTIME: 4, KVM_CLOCK_HOST_TSC: 8 } as const;
