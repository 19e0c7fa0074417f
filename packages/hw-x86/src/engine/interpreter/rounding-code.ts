/**
 * Whether SSE arithmetic was exact, for programs that have not set MXCSR's precision flag: a WebAssembly function that asks
 * error-free transformations (Knuth's sum, Dekker's product) about results that were rounded to nearest and are finite.
 */
import { SSE_OPERATION } from "../fpu/sse.ts";
import type { Code } from "../wasm/code.ts";
import { FunctionBuilder, type ModuleBuilder, signature } from "../wasm/module-builder.ts";

/** Between these Dekker's product neither overflows nor loses bits below the smallest number. */
const SMALL = 2 ** -450;
const LARGE = 2 ** 450;
const SPLITTER = 2 ** 27 + 1;

/** (operation, double ? 1 : 0, lanes, a, b, result) -> 1 when a lane was rounded, or when that cannot be told. */
export const MAY_BE_ROUNDED = signature(["i32", "i32", "i32", "v128", "v128", "v128"], ["i32"]);

export function buildMayBeRounded(module: ModuleBuilder): number {
  const double = module.add(laneFunction(module, doubleWasRounded));
  const single = module.add(laneFunction(module, singleWasRounded));
  const f = new FunctionBuilder(module.typeIndex(MAY_BE_ROUNDED), MAY_BE_ROUNDED.parameters.length);
  const c = f.code;
  const [operation, isDouble, lanes, a, b, result] = [0, 1, 2, 3, 4, 5];
  const next = c.loop();
  c.get(isDouble).if("i32");
  c.get(operation);
  for (const vector of [a, b, result]) c.get(vector).lane("f64x2.extract_lane", 0);
  c.call(double).else().get(operation);
  for (const vector of [a, b, result]) c.get(vector).lane("f32x4.extract_lane", 0).op("f64.promote_f32");
  c.call(single).end().if();
  c.i32(1).return().end();
  c.get(lanes).i32(1).op("i32.sub").tee(lanes).if();
  for (const vector of [a, b, result]) {
    c.get(isDouble).if();
    rotate(c, vector, 8);
    c.else();
    rotate(c, vector, 4);
    c.end();
  }
  c.br(next).end();
  c.end();
  c.i32(0);
  return module.add(f);
}

/** The next lane comes to the front. */
function rotate(c: Code, vector: number, bytes: number): void {
  const lanes = Array.from({ length: 16 }, (_, i) => (i + bytes) & 15);
  c.get(vector).get(vector).shuffle(lanes).set(vector);
}

/** (operation, a, b, result) -> whether it was rounded. */
function laneFunction(module: ModuleBuilder, body: (f: FunctionBuilder) => void): FunctionBuilder {
  const f = new FunctionBuilder(module.typeIndex(signature(["i32", "f64", "f64", "f64"], ["i32"])), 4);
  body(f);
  return f;
}
const [OPERATION, A, B, RESULT] = [0, 1, 2, 3] as const;

function when(c: Code, operation: number, body: () => void): void {
  c.get(OPERATION).i32(operation).op("i32.eq").if();
  body();
  c.return().end();
}
/** Subtraction is addition of the negative. */
function subtractionAsAddition(c: Code): void {
  c.get(OPERATION).i32(SSE_OPERATION.subtract).op("i32.eq").if();
  c.get(B).op("f64.neg").set(B).i32(SSE_OPERATION.add).set(OPERATION).end();
}
/** Pushes whether a + b differs from `sum`, which is a + b rounded. */
function pushSumError(f: FunctionBuilder, sum: number): void {
  const c = f.code;
  const rest = f.allocate("f64");
  c.get(sum).get(A).op("f64.sub").set(rest);
  c.get(A).get(sum).get(rest).op("f64.sub").op("f64.sub").get(B).get(rest).op("f64.sub").op("f64.add");
  c.f64(0).op("f64.ne");
}

/** Singles, widened: sums aside, doubles hold the exact results of what is asked here. */
function singleWasRounded(f: FunctionBuilder): void {
  const c = f.code;
  const wide = f.allocate("f64");
  subtractionAsAddition(c);
  when(c, SSE_OPERATION.add, () => {
    c.get(A).get(B).op("f64.add").tee(wide).get(RESULT).op("f64.ne");
    pushSumError(f, wide);
    c.op("i32.or");
  });
  when(c, SSE_OPERATION.multiply, () => c.get(A).get(B).op("f64.mul").get(RESULT).op("f64.ne"));
  when(c, SSE_OPERATION.divide, () => c.get(RESULT).get(B).op("f64.mul").get(A).op("f64.ne"));
  when(c, SSE_OPERATION.squareRoot, () => c.get(RESULT).get(RESULT).op("f64.mul").get(B).op("f64.ne"));
  c.i32(1);
}

function doubleWasRounded(f: FunctionBuilder): void {
  const c = f.code;
  const product = f.allocate("f64");
  const [xHigh, xLow, yHigh, yLow] = [f.allocate("f64"), f.allocate("f64"), f.allocate("f64"), f.allocate("f64")];
  const split = (x: number, high: number, low: number): void => {
    c.get(x).f64(SPLITTER).op("f64.mul").tee(low).get(low).get(x).op("f64.sub").op("f64.sub").set(high);
    c.get(x).get(high).op("f64.sub").set(low);
  };
  /** Pushes whether x * y differs from `wanted`. */
  const pushProductDiffers = (x: number, y: number, wanted: number): void => {
    c.get(x).get(y).op("f64.mul").set(product);
    split(x, xHigh, xLow);
    split(y, yHigh, yLow);
    c.get(xLow).get(yLow).op("f64.mul");
    c.get(product).get(xHigh).get(yHigh).op("f64.mul").op("f64.sub");
    c.get(xLow).get(yHigh).op("f64.mul").op("f64.sub");
    c.get(xHigh).get(yLow).op("f64.mul").op("f64.sub");
    c.op("f64.sub").f64(0).op("f64.ne");
    c.get(product).get(wanted).op("f64.ne").op("i32.or");
  };
  /** Anything but zero and what is far from the limits cannot be told. */
  const refuseExtremes = (x: number): void => {
    c.get(x).op("f64.abs").f64(SMALL).op("f64.gt").get(x).op("f64.abs").f64(LARGE).op("f64.lt").op("i32.and");
    c.get(x).f64(0).op("f64.eq").op("i32.or").op("i32.eqz").if();
    c.i32(1).return().end();
  };
  subtractionAsAddition(c);
  refuseExtremes(B);
  when(c, SSE_OPERATION.squareRoot, () => pushProductDiffers(RESULT, RESULT, B));
  refuseExtremes(A);
  when(c, SSE_OPERATION.add, () => pushSumError(f, RESULT));
  when(c, SSE_OPERATION.multiply, () => pushProductDiffers(A, B, RESULT));
  when(c, SSE_OPERATION.divide, () => pushProductDiffers(RESULT, B, A));
  c.i32(1);
}
