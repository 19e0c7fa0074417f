/** What MMX and SSE rows share: constants, passing vectors to helpers, and the switch of the x87 unit to MMX. */
import { state } from "../cpu-state.ts";
import type { Bool, Emitter, Int, Vec } from "../emitter.ts";
import { DESTINATION, RESULT, SOURCE_VECTOR } from "../fpu/sse.ts";

/** Little-endian bytes of `values`, each `bytes` long. */
export function laneBytes(values: readonly (number | bigint)[], bytes: number): number[] {
  return values.flatMap((value) => Array.from({ length: bytes }, (_, i) => Number((BigInt(value) >> BigInt(8 * i)) & 0xffn)));
}
/** A constant vector of 16 / bytes equal lanes. */
export function splatConst(e: Emitter, value: bigint | number, bytes: number): Vec {
  return e.vecConst(laneBytes(Array<bigint | number>(16 / bytes).fill(value), bytes));
}

export function low64(e: Emitter, vector: Vec): Int {
  return e.lane("i64x2.extract_lane", 0, vector) as Int;
}
export function high64(e: Emitter, vector: Vec): Int {
  return e.lane("i64x2.extract_lane", 1, vector) as Int;
}
export function fromHalves(e: Emitter, low: Int, high: Int): Vec {
  return e.lane("i64x2.replace_lane", 1, e.vec("i64x2.splat", low), high) as Vec;
}
/** low in the lower half, zero above. */
export function fromLow(e: Emitter, low: Int): Vec {
  return e.lane("i64x2.replace_lane", 0, splatConst(e, 0, 8), low) as Vec;
}

const LOW_32 = [0, 1, 2, 3];
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
/** The low `bits` of `low`, the rest of `rest`. */
export function mergeLow(e: Emitter, low: Vec, rest: Vec, bits: 32 | 64): Vec {
  return e.shuffle(low, rest, bits === 32 ? [...LOW_32, ...range(20, 32)] : [...range(0, 8), ...range(24, 32)]);
}

function passVector(e: Emitter, slot: number, vector: Vec): void {
  e.setState(slot, 64, low64(e, vector));
  e.setState(slot + 8, 64, high64(e, vector));
}
/** Leaves both operands where the SSE helpers look for them. */
export function passOperands(e: Emitter, destination: Vec, source: Vec): void {
  passVector(e, DESTINATION, destination);
  passVector(e, SOURCE_VECTOR, source);
}
export function helperResult(e: Emitter): Vec {
  return fromHalves(e, e.state(RESULT, 64), e.state(RESULT + 8, 64));
}

/** Calls the helper with `source`, over `destination`, and takes its result. */
export function viaHelper(e: Emitter, destination: Vec, source: Vec, helper: string, ...args: (number | Bool)[]): Vec {
  passOperands(e, destination, source);
  e.helper(helper, ...args);
  return helperResult(e);
}

/** Before the store of an MMX register to memory, `enterMmx` comes after it: what a fault of the store leaves is up to the vendor. */
export function beginMmxStore(e: Emitter): void {
  e.if(e.ne(e.and(e.state(state.fpuStatus, 16), e.int(0x3800)), e.int(0)), () => {
    e.helper("beginMmxStore", 0);
  });
}

/** Every MMX instruction: TOP = 0, all registers in use. The written register's exponent is `writeVec`'s business. */
export function enterMmx(e: Emitter): void {
  e.setState(state.fpuTags, 16, e.int(0));
  e.setState(state.fpuStatus, 16, e.and(e.state(state.fpuStatus, 16), e.int(0xc7ff)));
}
