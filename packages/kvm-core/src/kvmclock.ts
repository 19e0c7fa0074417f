/** Guest side of kvmclock: `pvclock_vcpu_time_info` and `pvclock_wall_clock`. Source: Linux, Documentation/virt/kvm/x86/msr.rst. */

/** What a vCPU's time page says. */
export interface PvclockTime {
  /** Guest TSC at which `systemTimeNs` held. */
  readonly tscTimestamp: bigint;
  /** Guest time, ns. */
  readonly systemTimeNs: bigint;
  readonly tscKhz: number;
  /** PvclockFlag */
  readonly flags: number;
}
export const PvclockFlag = { tscStable: 1, guestStopped: 2 } as const;
export const PVCLOCK_TIME_BYTES = 32;
export const PVCLOCK_WALL_CLOCK_BYTES = 12;

/** Writes the 32 bytes: version odd, contents, version even again. */
export type WritePvclockTime = (page: Uint8Array, time: PvclockTime) => void;
/** Writes the 12 bytes: wall-clock time at which guest time was 0, ns since the epoch. */
export type WriteWallClock = (page: Uint8Array, bootTimeNs: bigint) => void;
/** Multiplier and shift such that ns = ((ticks << shift) * multiplier) >> 32, shift negative for right. */
export type PvclockScale = (tscKhz: number) => { multiplier: number; shift: number };
/** What a guest with this page reads at `tsc`, ns. */
export type ReadPvclock = (page: Uint8Array, tsc: bigint) => bigint;
