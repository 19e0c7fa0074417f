import { describe, expect, it } from "vitest";
import { PvclockFlag, pvclockScale, readPvclock, writePvclockTime, writeWallClock } from "../src/kvmclock.ts";

describe("kvmclock", () => {
  it("scales every usual frequency within a part in a billion", () => {
    for (const tscKhz of [1000, 999_999, 1_000_000, 1_000_001, 1_995_379, 2_000_000, 2_000_001, 3_800_000, 5_200_123]) {
      const { multiplier, shift } = pvclockScale(tscKhz);
      expect(multiplier).toBeLessThan(2 ** 32);
      expect(multiplier).toBeGreaterThanOrEqual(2 ** 31);
      const nsPerTick = (2 ** shift * multiplier) / 2 ** 32;
      expect(Math.abs((nsPerTick * tscKhz) / 1e6 - 1)).toBeLessThan(1e-9);
    }
  });
  it("lets a guest read the time that was written, and what goes on from it", () => {
    const page = new Uint8Array(32);
    const time = { tscTimestamp: 1_000_000n, systemTimeNs: 5_000_000_000n, tscKhz: 2_400_000, flags: PvclockFlag.tscStable };
    writePvclockTime(page, time);
    expect(readPvclock(page, 1_000_000n)).toBe(5_000_000_000n);
    const later = readPvclock(page, 1_000_000n + 2_400_000_000n);
    expect(Number(later - 6_000_000_000n)).toBeLessThanOrEqual(1);
    expect(page[29]).toBe(1);
    expect(page[0]).toBe(2);
  });
  it("goes to the next even version at each update, over the end of 32 bits as well", () => {
    const page = new Uint8Array(32);
    const view = new DataView(page.buffer);
    const time = { tscTimestamp: 0n, systemTimeNs: 0n, tscKhz: 1_000_000, flags: 0 };
    for (const [before, after] of [
      [0, 2],
      [2, 4],
      [5, 6],
      [0xffff_fffe, 0],
    ]) {
      view.setUint32(0, before, true);
      writePvclockTime(page, time);
      expect(view.getUint32(0, true)).toBe(after);
    }
  });
  it("writes the wall clock in seconds and nanoseconds", () => {
    const page = new Uint8Array(12);
    writeWallClock(page, 1_700_000_000_123_456_789n);
    expect([...new Uint32Array(page.buffer)]).toEqual([2, 1_700_000_000, 123_456_789]);
  });
});
