import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TscReading } from "../src/engine/tsc-reading.ts";

describe("a TSC reading in halves", () => {
  it("adds an offset as 64-bit words do", () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), (ticks, offset) => {
        const reading = new TscReading();
        reading.set(ticks);
        reading.add(Number(BigInt.asIntN(32, offset)), Number(offset >> 32n));
        expect(reading.big).toBe(BigInt.asUintN(64, BigInt(ticks) + offset));
      }),
    );
  });

  it("takes any value whole, and what is above 64 bits is lost", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: (1n << 80n) - 1n }), (value) => {
        const reading = new TscReading();
        reading.setBig(value);
        expect(reading.big).toBe(BigInt.asUintN(64, value));
      }),
    );
  });
});
