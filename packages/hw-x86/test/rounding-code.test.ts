/** The function that tells whether SSE arithmetic was exact, beside the soft float's precision flag. */
import { expect, test } from "vitest";
import { add, divide, multiply, squareRoot, sseNan, subtract } from "../src/engine/fpu/float-arithmetic.ts";
import { DOUBLE, FloatContext, PE, pack32, pack64, SINGLE, unpack32, unpack64 } from "../src/engine/fpu/float-format.ts";
import { SSE_OPERATION } from "../src/engine/fpu/sse.ts";
import { buildMayBeRounded } from "../src/engine/interpreter/rounding-code.ts";
import { FunctionBuilder, ModuleBuilder, signature } from "../src/engine/wasm/module-builder.ts";
import { chooseSeed, seededRandom } from "./random.ts";

type Ask = (operation: number, isDouble: number, a: number, b: number, result: number) => number;

function build(): Ask {
  const module = new ModuleBuilder();
  const target = buildMayBeRounded(module);
  const f = new FunctionBuilder(module.typeIndex(signature(["i32", "i32", "f64", "f64", "f64"], ["i32"])), 5);
  const c = f.code;
  c.get(0).get(1).i32(1);
  for (const number of [2, 3, 4]) {
    c.get(number).op("f64x2.splat");
    c.get(number).op("f32.demote_f64").op("f32x4.splat");
    c.get(1).op("i64.extend_i32_u").i64(-1n).op("i64.mul").op("i64x2.splat").op("v128.bitselect");
  }
  c.call(target);
  module.export("ask", module.add(f));
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true });
  return new WebAssembly.Instance(new WebAssembly.Module(module.encode()), { bank: { memory } }).exports.ask as Ask;
}

const context = new FloatContext();
const bytes = new DataView(new ArrayBuffer(8));
function bits64(x: number): bigint {
  bytes.setFloat64(0, x);
  return bytes.getBigUint64(0);
}
function bits32(x: number): number {
  bytes.setFloat32(0, x);
  return bytes.getUint32(0);
}

function softly(operation: number, isDouble: boolean, x: number, y: number): { result: number; isRounded: boolean } {
  context.reset(0, 0);
  const format = isDouble ? DOUBLE : SINGLE;
  const [a, b] = [x, y].map((value) => (isDouble ? unpack64(bits64(value)) : unpack32(bits32(value))));
  const run = () => {
    switch (operation) {
      case SSE_OPERATION.add:
        return add(context, format, sseNan, a, b);
      case SSE_OPERATION.subtract:
        return subtract(context, format, sseNan, a, b);
      case SSE_OPERATION.multiply:
        return multiply(context, format, sseNan, a, b);
      case SSE_OPERATION.divide:
        return divide(context, format, sseNan, a, b);
      default:
        return squareRoot(context, format, b);
    }
  };
  const value = run();
  if (isDouble) bytes.setBigUint64(0, pack64(value));
  else bytes.setUint32(0, pack32(value));
  const result = isDouble ? bytes.getFloat64(0) : bytes.getFloat32(0);
  return { result, isRounded: (context.flags & PE) !== 0 };
}

const { add: ADD, subtract: SUB, multiply: MUL, divide: DIV, squareRoot: SQRT } = SSE_OPERATION;
const seed = chooseSeed();

test(`it says of every result whether it was rounded (seed ${seed})`, () => {
  const ask = build();
  const random = seededRandom(seed);
  const number = (isDouble: boolean): number => {
    const whole = random.below(2) === 0 ? random.below(1000) : random.below(2 ** 31);
    const scale = 2 ** (random.below(isDouble ? 120 : 40) - (isDouble ? 60 : 20));
    const fine = random.oneIn(2) ? 0 : random.below(2 ** 22) * 2 ** -40;
    const value = (random.oneIn(2) ? 1 : -1) * (whole + fine) * scale;
    return isDouble ? value : Math.fround(value);
  };
  let exact = 0;
  for (let i = 0; i < 40_000; i++) {
    const isDouble = random.oneIn(2);
    const operation = random.pick([ADD, SUB, MUL, DIV, SQRT]);
    let [a, b] = [number(isDouble), number(isDouble)];
    if (operation === DIV && b === 0) b = 3;
    if (operation === SQRT) b = random.oneIn(2) ? b * b : Math.abs(b);
    if (operation === DIV && random.oneIn(2)) a = isDouble ? a * b : Math.fround(a * b);
    if (!isDouble) [a, b] = [Math.fround(a), Math.fround(b)];
    const { result, isRounded } = softly(operation, isDouble, a, b);
    if (!isRounded) exact++;
    const answer = ask(operation, isDouble ? 1 : 0, a, b, result);
    expect(answer, `operation ${operation}, ${isDouble ? "double" : "single"}: ${a}, ${b} -> ${result}`).toBe(
      isRounded ? 1 : 0,
    );
  }
  // Both answers are asked for
  expect(exact).toBeGreaterThan(5000);
  expect(exact).toBeLessThan(35_000);
});

test("it does not vouch for what lies near the limits of doubles", () => {
  const ask = build();
  expect(ask(MUL, 1, 2 ** -500, 2 ** -520, 2 ** -1020)).toBe(1);
  expect(ask(ADD, 1, 2 ** 1000, 2 ** 1000, 2 ** 1001)).toBe(1);
  expect(ask(ADD, 1, 2 ** 400, 2 ** 400, 2 ** 401)).toBe(0);
});
