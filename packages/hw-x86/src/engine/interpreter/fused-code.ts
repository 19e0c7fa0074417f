/**
 * Fused multiply-add, which WebAssembly has not: a * b + c, rounded once, to nearest. Singles are computed in doubles, whose product is
 * exact and whose sum is rounded to odd, which leaves the rounding to single with what it needs; doubles by error-free
 * transformations (Boldo and Melquiond, "Emulation of FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to Odd"). What
 * these do not vouch for (NaNs, infinities, denormals, numbers near the limits, and inexact results while MXCSR's precision flag is
 * clear) comes out as NaN, and is the helper's.
 */
import { state } from "../cpu-state.ts";
import type { Code } from "../wasm/code.ts";
import { FunctionBuilder, type ModuleBuilder, signature } from "../wasm/module-builder.ts";

/** (double ? 1 : 0, lanes, a, b, c) -> results in the lowest lanes, those of a above. */
export const FUSED_MULTIPLY_ADD = signature(["i32", "i32", "v128", "v128", "v128"], ["v128"]);

const PE = 0x20;
const SPLITTER = 2 ** 27 + 1;
/** Operands that are not zero: normal singles; doubles whose products and their errors are normal. */
const SINGLE_RANGE = [2 ** -126, (2 - 2 ** -23) * 2 ** 127] as const;
const DOUBLE_RANGE = [2 ** -450, 2 ** 450] as const;

export function buildFusedMultiplyAdd(module: ModuleBuilder): number {
  const lane = (body: (f: FunctionBuilder) => void): number => {
    const f = new FunctionBuilder(module.typeIndex(signature(["f64", "f64", "f64"], ["f64"])), 3);
    body(f);
    return module.add(f);
  };
  const single = lane(fuseSingles);
  const double = lane(fuseDoubles);
  const f = new FunctionBuilder(module.typeIndex(FUSED_MULTIPLY_ADD), FUSED_MULTIPLY_ADD.parameters.length);
  const c = f.code;
  const [isDouble, lanes, ...operands] = [0, 1, 2, 3, 4];
  const result = f.allocate("v128");
  const computeLane = (shape: "f32x4" | "f64x2", index: number): void => {
    c.get(result);
    for (const operand of operands) {
      c.get(operand).lane(`${shape}.extract_lane`, index);
      if (shape === "f32x4") c.op("f64.promote_f32");
    }
    if (shape === "f32x4") c.call(single).op("f32.demote_f64");
    else c.call(double);
    c.lane(`${shape}.replace_lane`, index).set(result);
  };
  const compute = (shape: "f32x4" | "f64x2", count: number): void => {
    computeLane(shape, 0);
    c.get(lanes).i32(1).op("i32.gt_u").if();
    for (let index = 1; index < count; index++) computeLane(shape, index);
    c.end();
  };
  c.get(operands[0] as number).set(result);
  c.get(isDouble).if();
  compute("f64x2", 2);
  c.else();
  compute("f32x4", 4);
  c.end().get(result);
  return module.add(f);
}

const [A, B, C] = [0, 1, 2] as const;

function returnNan(c: Code): void {
  c.f64(Number.NaN).return();
}
/** Leaves with NaN unless the number is zero or within the range. */
function refuseOutside(c: Code, x: number, [least, most]: readonly [number, number]): void {
  c.get(x).op("f64.abs").f64(least).op("f64.ge").get(x).op("f64.abs").f64(most).op("f64.le").op("i32.and");
  c.get(x).f64(0).op("f64.eq").op("i32.or").op("i32.eqz").if();
  returnNan(c);
  c.end();
}
/** Leaves with NaN if the number on the stack is true and nothing has set the precision flag yet. */
function refuseInexact(c: Code): void {
  c.loadAt("i32.load", state.mxcsr).i32(PE).op("i32.and").op("i32.eqz").op("i32.and").if();
  returnNan(c);
  c.end();
}
/** Knuth's sum: x + y rounded, and what was lost. */
function emitSum(f: FunctionBuilder, x: number, y: number, sum: number, error: number): void {
  const c = f.code;
  const part = f.allocate("f64");
  c.get(x).get(y).op("f64.add").tee(sum).get(x).op("f64.sub").set(part);
  c.get(x).get(sum).get(part).op("f64.sub").op("f64.sub").get(y).get(part).op("f64.sub").op("f64.add").set(error);
  f.release("f64", part);
}
/** A sum that lost something gets an odd last bit, by one step towards what was lost where it has none. */
function emitRoundToOdd(f: FunctionBuilder, sum: number, error: number): void {
  const c = f.code;
  const bits = f.allocate("i64");
  c.get(sum).op("i64.reinterpret_f64").set(bits);
  c.get(error).f64(0).op("f64.ne").get(bits).op("i32.wrap_i64").i32(1).op("i32.and").op("i32.eqz").op("i32.and").if();
  // +1 where both have one sign, else -1
  c.get(bits).get(error).op("i64.reinterpret_f64").get(bits).op("i64.xor").i64(63n).op("i64.shr_s").i64(1n).op("i64.or");
  c.op("i64.add").op("f64.reinterpret_i64").set(sum).end();
  f.release("i64", bits);
}

function fuseSingles(f: FunctionBuilder): void {
  const c = f.code;
  const [product, sum, error, result] = [f.allocate("f64"), f.allocate("f64"), f.allocate("f64"), f.allocate("f64")];
  for (const operand of [A, B, C]) refuseOutside(c, operand, SINGLE_RANGE);
  c.get(A).get(B).op("f64.mul").set(product);
  emitSum(f, product, C, sum, error);
  emitRoundToOdd(f, sum, error);
  c.get(sum).op("f32.demote_f64").op("f64.promote_f32").set(result);
  // Tiny, or rounded up from there, or past the largest; a sum of zero is exact
  refuseOutside(c, result, [2 ** -126 + 2 ** -149, SINGLE_RANGE[1]]);
  c.get(result).f64(0).op("f64.eq").get(sum).f64(0).op("f64.ne").op("i32.and").if();
  returnNan(c);
  c.end();
  c.get(result).get(sum).op("f64.ne");
  refuseInexact(c);
  c.get(result);
}

function fuseDoubles(f: FunctionBuilder): void {
  const c = f.code;
  const local = (): number => f.allocate("f64");
  const [aHigh, aLow, bHigh, bLow, product, lost] = [local(), local(), local(), local(), local(), local()];
  for (const operand of [A, B, C]) refuseOutside(c, operand, DOUBLE_RANGE);
  c.get(A).get(B).op("f64.mul").tee(product);
  c.f64(0).op("f64.eq").if();
  c.get(product).get(C).op("f64.add").return().end();
  // Dekker's product
  const split = (x: number, high: number, low: number): void => {
    c.get(x).f64(SPLITTER).op("f64.mul").tee(low).get(low).get(x).op("f64.sub").op("f64.sub").set(high);
    c.get(x).get(high).op("f64.sub").set(low);
  };
  split(A, aHigh, aLow);
  split(B, bHigh, bLow);
  c.get(aLow).get(bLow).op("f64.mul");
  c.get(product).get(aHigh).get(bHigh).op("f64.mul").op("f64.sub");
  c.get(aLow).get(bHigh).op("f64.mul").op("f64.sub");
  c.get(aHigh).get(bLow).op("f64.mul").op("f64.sub");
  c.op("f64.sub").set(lost);
  const [low, lowLost, high, highLost, rest, restLost] = [local(), local(), local(), local(), local(), local()];
  emitSum(f, C, lost, low, lowLost);
  emitSum(f, product, low, high, highLost);
  emitSum(f, lowLost, highLost, rest, restLost);
  emitRoundToOdd(f, rest, restLost);
  const [result, resultLost] = [aHigh, aLow];
  emitSum(f, high, rest, result, resultLost);
  c.get(resultLost).f64(0).op("f64.ne").get(restLost).f64(0).op("f64.ne").op("i32.or");
  refuseInexact(c);
  c.get(result);
}
