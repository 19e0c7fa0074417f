/** The soft float beside JavaScript's own doubles and singles, and 80-bit values from the manual: needs no other processor. */
import { describe, expect, it } from "vitest";
import { add, divide, multiply, squareRoot, sseNan, subtract } from "../src/engine/fpu/float-arithmetic.ts";
import {
  DOUBLE,
  EXTENDED,
  FloatContext,
  type FloatFormat,
  type Num,
  OE,
  PE,
  pack32,
  pack64,
  pack80,
  round,
  SINGLE,
  UE,
  unpack32,
  unpack64,
  unpack80,
} from "../src/engine/fpu/float-format.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";
import { awkwardFloat } from "./silicon/awkward-fpu-state.ts";

const view = new DataView(new ArrayBuffer(8));
function toDouble(bits: bigint): number {
  view.setBigUint64(0, bits);
  return view.getFloat64(0);
}
function doubleBits(value: number): bigint {
  view.setFloat64(0, value);
  return view.getBigUint64(0);
}
function toSingle(bits: number): number {
  view.setUint32(0, bits);
  return view.getFloat32(0);
}
function singleBits(value: number): number {
  view.setFloat32(0, value);
  return view.getUint32(0);
}

type Operation = (context: FloatContext, format: FloatFormat, a: Num, b: Num) => Num;
const operations: [string, Operation, (a: number, b: number) => number][] = [
  ["+", (c, f, a, b) => add(c, f, sseNan, a, b), (a, b) => a + b],
  ["-", (c, f, a, b) => subtract(c, f, sseNan, a, b), (a, b) => a - b],
  ["*", (c, f, a, b) => multiply(c, f, sseNan, a, b), (a, b) => a * b],
  ["/", (c, f, a, b) => divide(c, f, sseNan, a, b), (a, b) => a / b],
  ["sqrt", (c, f, a) => squareRoot(c, f, a), (a) => Math.sqrt(a)],
];
const ROUNDS = 20_000;

describe("rounding to nearest gives what JavaScript computes, bit for bit", () => {
  const seed = chooseSeed();
  const context = new FloatContext();
  for (const [name, soft, native] of operations) {
    it(`double ${name} (seed ${seed})`, () => {
      const random: Random = seededRandom(seed);
      for (let i = 0; i < ROUNDS; i++) {
        const [a, b] = [awkwardFloat(random, 64), awkwardFloat(random, 64)];
        const expected = native(toDouble(a), toDouble(b));
        context.reset(0, 0);
        const result = soft(context, DOUBLE, unpack64(a), unpack64(b));
        if (Number.isNaN(expected)) expect(result.kind).toBe("quiet");
        else if (pack64(result) !== doubleBits(expected)) expect.fail(`${toDouble(a)} ${name} ${toDouble(b)}`);
      }
    });
    it(`single ${name} (seed ${seed})`, () => {
      const random: Random = seededRandom(seed + 1);
      for (let i = 0; i < ROUNDS; i++) {
        const [a, b] = [Number(awkwardFloat(random, 32)), Number(awkwardFloat(random, 32))];
        const expected = Math.fround(native(toSingle(a), toSingle(b)));
        context.reset(0, 0);
        const result = soft(context, SINGLE, unpack32(a), unpack32(b));
        if (Number.isNaN(expected)) expect(result.kind).toBe("quiet");
        // Denormal results may round twice in the expectation, so they are the silicon test's to check.
        else if (Math.abs(expected) >= 2 ** -126 && pack32(result) !== singleBits(expected)) {
          expect.fail(`${toSingle(a)} ${name} ${toSingle(b)}`);
        }
      }
    });
  }
});

describe("80-bit numbers", () => {
  const context = new FloatContext();
  const ONE = unpack80(0x3fff, 1n << 63n);
  const number = (value: number): Num => unpack64(doubleBits(value));

  it("1/3 in each rounding mode", () => {
    const expected = [0xaaaa_aaaa_aaaa_aaabn, 0xaaaa_aaaa_aaaa_aaaan, 0xaaaa_aaaa_aaaa_aaabn, 0xaaaa_aaaa_aaaa_aaaan];
    expected.forEach((significand, mode) => {
      context.reset(mode, 0);
      expect(pack80(divide(context, EXTENDED, sseNan, ONE, number(3)))).toEqual({ signExponent: 0x3ffd, significand });
      expect(context.flags).toBe(PE);
      expect(context.roundedUp).toBe((significand & 1n) === 1n);
    });
  });
  it("sqrt(2)", () => {
    context.reset(0, 0);
    expect(pack80(squareRoot(context, EXTENDED, number(2)))).toEqual({
      signExponent: 0x3fff,
      significand: 0xb504_f333_f9de_6484n,
    });
  });
  it("pseudo-denormals have the value of the smallest normal exponent", () => {
    const pseudo = unpack80(0, 1n << 63n);
    expect(pseudo.denormal).toBe(true);
    expect(pack80(pseudo)).toEqual({ signExponent: 1, significand: 1n << 63n });
  });
  it("unnormals, pseudo-NaNs and pseudo-infinities are unsupported", () => {
    expect(unpack80(0x3fff, 1n << 62n).kind).toBe("unsupported");
    expect(unpack80(0x7fff, 1n << 62n).kind).toBe("unsupported");
    expect(unpack80(0x7fff, 0n).kind).toBe("unsupported");
  });
  it("unmasked over- and underflow wrap the exponent by 24576", () => {
    context.reset(0, OE | UE);
    expect(pack80(round(context, EXTENDED, 0, 16384, 1n)).signExponent).toBe(16384 + 16383 - 24576);
    expect(context.flags).toBe(OE);
    context.reset(0, OE | UE);
    expect(pack80(round(context, EXTENDED, 0, -16383, 1n)).signExponent).toBe(24576);
    expect(context.flags).toBe(UE);
  });
  it("an exact denormal is no underflow while that is masked, and a rounded one is", () => {
    context.reset(0, 0);
    expect(pack80(round(context, EXTENDED, 0, -16445, 1n))).toEqual({ signExponent: 0, significand: 1n });
    expect(context.flags).toBe(0);
    round(context, EXTENDED, 0, -16446, 3n);
    expect(context.flags).toBe(UE | PE);
  });
});
