/** Guest side of kvmclock: `pvclock_vcpu_time_info` and `pvclock_wall_clock`. Source: Linux, Documentation/virt/kvm/x86/msr.rst. */
import { struct, u8, u32, u64 } from "@mkvm/kvm-abi";

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

const PvclockVcpuTimeInfo = struct("pvclock_vcpu_time_info", 32, {
  version: u32(0), // odd while the contents change
  pad0: u32(4),
  tsc_timestamp: u64(8),
  system_time: u64(16),
  tsc_to_system_mul: u32(24),
  tsc_shift: u8(28), // signed
  flags: u8(29),
  pad: u8(30),
  _31: u8(31),
});
const PvclockWallClock = struct("pvclock_wall_clock", 12, { version: u32(0), sec: u32(4), nsec: u32(8) });
export const PVCLOCK_TIME_BYTES = PvclockVcpuTimeInfo.sizeBytes;
export const PVCLOCK_WALL_CLOCK_BYTES = PvclockWallClock.sizeBytes;

/** Multiplier and shift such that ns = ((ticks << shift) * multiplier) >> 32; a negative shift is to the right. */
export function pvclockScale(tscKhz: number): { multiplier: number; shift: number } {
  let shift = 0;
  let hz = tscKhz * 1000;
  // Brings hz between 1e9 and 2e9, so that the multiplier has all its 32 bits
  while (hz > 2e9) {
    hz /= 2;
    shift--;
  }
  while (hz <= 1e9) {
    hz *= 2;
    shift++;
  }
  return { multiplier: Math.floor((1e9 * 2 ** 32) / hz), shift };
}

/** Writes the 32 bytes: version odd, contents, version even again. The version goes on from what is there. */
export function writePvclockTime(page: Uint8Array, time: PvclockTime): void {
  const odd = (PvclockVcpuTimeInfo.get(page, "version") | 1) >>> 0;
  PvclockVcpuTimeInfo.set(page, "version", odd);
  const { multiplier, shift } = pvclockScale(time.tscKhz);
  PvclockVcpuTimeInfo.write(page, {
    tsc_timestamp: BigInt.asUintN(64, time.tscTimestamp),
    system_time: BigInt.asUintN(64, time.systemTimeNs),
    tsc_to_system_mul: multiplier,
    tsc_shift: shift & 0xff,
    flags: time.flags,
  });
  PvclockVcpuTimeInfo.set(page, "version", (odd + 1) >>> 0);
}

/** Writes the 12 bytes: wall-clock time at which guest time was 0, ns since the epoch. */
export function writeWallClock(page: Uint8Array, bootTimeNs: bigint): void {
  const odd = (PvclockWallClock.get(page, "version") | 1) >>> 0;
  PvclockWallClock.set(page, "version", odd);
  PvclockWallClock.write(page, { sec: Number(bootTimeNs / 1_000_000_000n), nsec: Number(bootTimeNs % 1_000_000_000n) });
  PvclockWallClock.set(page, "version", (odd + 1) >>> 0);
}

/** What a guest with this page reads at guest TSC `tsc`, ns. */
export function readPvclock(page: Uint8Array, tsc: bigint): bigint {
  const info = PvclockVcpuTimeInfo.read(page);
  const shift = (info.tsc_shift << 24) >> 24;
  const delta = BigInt.asUintN(64, tsc - info.tsc_timestamp);
  const shifted = shift < 0 ? delta >> BigInt(-shift) : delta << BigInt(shift);
  return info.system_time + ((shifted * BigInt(info.tsc_to_system_mul)) >> 32n);
}
