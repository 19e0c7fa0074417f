import { describe, expect, it } from "vitest";
import { createPit, type Pit } from "../src/pit.ts";
import { PIT_HZ } from "../src/pit-channel.ts";
import { fakeClock } from "./fake-clock.ts";

function setUp() {
  const clock = fakeClock();
  const edges: number[] = [];
  let result = 1;
  const pit = createPit(
    {
      clock,
      setIrq(level) {
        if (level) edges.push(clock.monotonicNs());
        return result;
      },
    },
    { speaker: true },
  );
  return {
    clock,
    pit,
    edges,
    answer(next: number) {
      result = next;
    },
  };
}
function load(pit: Pit, channel: number, mode: number, count: number): void {
  pit.write(0x43, (channel << 6) | 0x30 | (mode << 1));
  pit.write(0x40 + channel, count & 0xff);
  pit.write(0x40 + channel, count >> 8);
}
const ns = (count: number) => Math.floor((count * 1e9) / PIT_HZ);

describe("8254", () => {
  it("ticks periodically in modes 2 and 3, with the guest taking each", () => {
    for (const mode of [2, 3, 6, 7]) {
      const { clock, pit, edges } = setUp();
      const start = clock.monotonicNs();
      load(pit, 0, mode, 11932);
      for (let i = 0; i < 5; i++) {
        clock.advance(ns(11932));
        pit.acknowledged();
      }
      expect(edges).toEqual([1, 2, 3, 4, 5].map((i) => start + i * ns(11932)));
    }
  });
  it("ticks once in modes 0 and 4, and not in modes 1 and 5", () => {
    for (const [mode, expected] of [
      [0, 1],
      [4, 1],
      [1, 0],
      [5, 0],
    ]) {
      const { clock, pit, edges } = setUp();
      load(pit, 0, mode, 1000);
      clock.advance(ns(1000) - 1);
      expect(edges).toHaveLength(0);
      clock.advance(ns(100_000));
      expect(edges).toHaveLength(expected);
      expect(clock.armed).toBe(0);
    }
  });
  it("delivers ticks that the guest was too slow for later, or never when told so", () => {
    const { clock, pit, edges } = setUp();
    load(pit, 0, 2, 11932);
    clock.advance(3 * ns(11932));
    expect(edges).toHaveLength(1);
    pit.acknowledged();
    pit.acknowledged();
    expect(edges).toHaveLength(3);
    pit.acknowledged();
    pit.acknowledged();
    expect(edges).toHaveLength(3);
    pit.reinject = false;
    clock.advance(3 * ns(11932));
    expect(edges).toHaveLength(6);
  });
  it("counts ticks that time jumped over", () => {
    const { pit, clock } = setUp();
    load(pit, 0, 2, 11932);
    const saved = pit.save();
    const late = setUp();
    late.clock.advance(10 * ns(11932) + 5);
    late.pit.restore(saved);
    late.clock.advance(0);
    expect(late.pit.save().pending_ticks).toBe(10n);
    expect(late.pit.save().next_tick).toBe(BigInt(clock.monotonicNs() + 11 * ns(11932)));
  });
  it("does not hold back ticks for a line that was masked", () => {
    const { clock, pit, edges, answer } = setUp();
    answer(-1);
    load(pit, 0, 2, 11932);
    clock.advance(10 * ns(11932));
    expect(edges).toHaveLength(10);
    expect(pit.save().pending_ticks).toBe(0n);
    answer(1);
    clock.advance(ns(11932));
    expect(edges).toHaveLength(11);
  });
  it("does not tick faster than 5 kHz", () => {
    const { clock, pit, edges } = setUp();
    pit.reinject = false;
    load(pit, 0, 2, 2);
    clock.advance(1_000_000);
    expect(edges).toHaveLength(5);
  });
  it("lets its counters be read, byte by byte, latched or not", () => {
    const { clock, pit } = setUp();
    load(pit, 2, 0, 0x1234);
    pit.write(0x61, 1);
    load(pit, 2, 0, 0x1234);
    clock.advance(ns(0x34) + 100);
    pit.write(0x43, 0x80);
    clock.advance(ns(0x200));
    expect(pit.read(0x42) | (pit.read(0x42) << 8)).toBe(0x1200);
    expect(pit.read(0x42) | (pit.read(0x42) << 8)).toBeLessThan(0x1001);
    load(pit, 2, 0, 0);
    expect(pit.read(0x42) | (pit.read(0x42) << 8)).toBe(0);
    clock.advance(1000);
    expect(pit.read(0x42) | (pit.read(0x42) << 8)).toBe(0xffff);
  });
  it("answers a read-back command with status, then count", () => {
    const { clock, pit } = setUp();
    load(pit, 2, 3, 1000);
    pit.write(0x43, 0xc8);
    expect(pit.read(0x42)).toBe(0x80 | 0x30 | 6);
    expect(pit.read(0x42) | (pit.read(0x42) << 8)).toBe(1000);
    clock.advance(ns(600) + 1000);
    pit.write(0x43, 0xe8);
    expect(pit.read(0x42)).toBe(0x30 | 6);
  });
  it("drives the speaker port: gate and output of channel 2, as calibration loops use them", () => {
    const { clock, pit } = setUp();
    pit.write(0x61, 1);
    load(pit, 2, 0, 11932);
    expect(pit.read(0x61) & 0x23).toBe(1);
    clock.advance(ns(11932) + 1000);
    expect(pit.read(0x61) & 0x23).toBe(0x21);
    pit.write(0x61, 2);
    expect(pit.read(0x61) & 3).toBe(2);
    const toggles = new Set<number>();
    for (let i = 0; i < 10; i++) {
      clock.advance(10_000);
      toggles.add(pit.read(0x61) & 0x10);
    }
    expect(toggles.size).toBe(2);
    expect(createPit({ clock, setIrq: () => 1 }, { speaker: false }).ownsPort(0x61)).toBe(false);
  });
  it("counts in BCD", () => {
    const { clock, pit } = setUp();
    pit.write(0x61, 1);
    pit.write(0x43, 0xb1);
    pit.write(0x42, 0x00);
    pit.write(0x42, 0x10);
    clock.advance(ns(1) + 500);
    expect(pit.read(0x42) | (pit.read(0x42) << 8)).toBe(0x0999);
  });
  it("restores to the same state, with the same next tick", () => {
    const { clock, pit } = setUp();
    load(pit, 0, 2, 11932);
    load(pit, 2, 3, 500);
    pit.write(0x61, 3);
    clock.advance(12_345_678);
    const saved = pit.save();
    const other = setUp();
    other.clock.advance(12_345_678);
    other.pit.restore(saved);
    expect(other.pit.save()).toEqual(saved);
    pit.acknowledged();
    other.pit.acknowledged();
    clock.advance(ns(11932) * 2);
    other.clock.advance(ns(11932) * 2);
    expect(other.pit.save()).toEqual(pit.save());
  });
  it("starts its counts anew at KVM_SET_PIT2", () => {
    const { clock, pit, edges } = setUp();
    load(pit, 0, 2, 11932);
    const state = pit.getState();
    clock.advance(5_000_000);
    pit.setState(state);
    clock.advance(ns(11932) - 1);
    expect(edges).toHaveLength(0);
    clock.advance(1);
    expect(edges).toHaveLength(1);
    pit.setState({ ...state, flags: 1 });
    expect(clock.armed).toBe(0);
    pit.dispose();
  });
});
