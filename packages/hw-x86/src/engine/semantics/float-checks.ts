/**
 * What the rows of SSE floating point ask about numbers and MXCSR before they take WebAssembly's result for the processor's. Numbers
 * are told apart by their bits without the sign, doubled: 0 is zero, then come denormals, normal numbers, infinity and NaNs.
 */
import { state } from "../cpu-state.ts";
import type { Bool, Doubt, Emitter, F32, F64, Int, Value, Vec } from "../emitter.ts";
import type { VectorFact } from "../translator/facts.ts";
import { splatConst } from "./vector-common.ts";

/** One of the four types that an operation comes in: PS, SS, PD, SD. */
export interface FloatType {
  readonly suffix: "PS" | "SS" | "PD" | "SD";
  readonly prefix: "NP" | "F3" | "66" | "F2";
  readonly bits: 32 | 64;
  readonly packed: boolean;
  readonly shape: "f32x4" | "f64x2";
  /** The same lanes as integers. */
  readonly integers: "i32x4" | "i64x2";
  readonly lanes: number;
  /** Operand column of the source. */
  readonly source: string;
  /** Neither denormal nor NaN, all numbers that the operation is about. */
  readonly tame: VectorFact;
}
export const PS: FloatType = {
  suffix: "PS",
  prefix: "NP",
  bits: 32,
  packed: true,
  shape: "f32x4",
  integers: "i32x4",
  lanes: 4,
  source: "xmm/m128",
  tame: "tame PS",
};
export const SS: FloatType = { ...PS, suffix: "SS", prefix: "F3", packed: false, lanes: 1, source: "xmm/m32", tame: "tame SS" };
export const PD: FloatType = {
  suffix: "PD",
  prefix: "66",
  bits: 64,
  packed: true,
  shape: "f64x2",
  integers: "i64x2",
  lanes: 2,
  source: "xmm/m128",
  tame: "tame PD",
};
export const SD: FloatType = { ...PD, suffix: "SD", prefix: "F2", packed: false, lanes: 1, source: "xmm/m64", tame: "tame SD" };
export const FLOAT_TYPES: readonly FloatType[] = [PS, SS, PD, SD];

// ---- MXCSR ----

/**
 * Rounding to nearest, everything masked. The flags do not matter, nor do DAZ and FTZ: operands and results that are denormal are
 * doubtful in any case.
 */
const USUAL_MASK = 0x7f80;
const USUAL = 0x1f80;
const PE = 0x20;

const mxcsr = (e: Emitter): Int => e.state(state.mxcsr, 32);
/** WebAssembly's rounding and masked exceptions are not what MXCSR asks for. */
export function isUnusual(e: Emitter): Bool {
  if (e.knows("usual")) return e.bool(false);
  return e.ne(e.and(mxcsr(e), e.int(USUAL_MASK)), e.int(USUAL));
}
/** A rounded result would set the precision flag: that is news once, and then no more until a program clears it. */
export function isPrecisionClear(e: Emitter): Bool {
  return e.isZero(e.and(mxcsr(e), e.int(PE)));
}

// ---- Scalars ----

/** The number in lane 0. */
export function scalarOf(e: Emitter, type: FloatType, vector: Vec): F32 | F64 {
  return e.lane(`${type.shape}.extract_lane`, 0, vector) as F32 | F64;
}
export function replaceScalar(e: Emitter, type: FloatType, vector: Vec, value: Value): Vec {
  return e.lane(`${type.shape}.replace_lane`, 0, vector, value) as Vec;
}

/** The smallest normal number and infinity, in doubled bits. */
const NORMAL = { 32: 0x0100_0000n, 64: 0x0020_0000_0000_0000n } as const;
const INFINITE = { 32: 0xff00_0000n, 64: 0xffe0_0000_0000_0000n } as const;

type Word = Int | Bool;
const word = (e: Emitter, bits: 32 | 64, value: bigint): Word => (bits === 64 ? e.int(value) : e.low32(e.int(value)));
const wordOp = (e: Emitter, bits: 32 | 64, name: string, a: Word, b: Word): Word => e.scalar(`i${bits}.${name}`, a, b) as Word;

function doubled(e: Emitter, { bits }: FloatType, x: Value): Word {
  return wordOp(e, bits, "shl", e.scalar(`i${bits}.reinterpret_f${bits}`, x) as Word, word(e, bits, 1n));
}
/** (doubled bits - from) compared with `to`, unsigned. */
function distance(e: Emitter, type: FloatType, x: Value, from: bigint, comparison: string, to: bigint): Bool {
  const { bits } = type;
  const moved = wordOp(e, bits, "sub", doubled(e, type, x), word(e, bits, from));
  return wordOp(e, bits, comparison, moved, word(e, bits, to)) as Bool;
}
const isNotZero = (e: Emitter, type: FloatType, x: Value): Bool =>
  wordOp(e, type.bits, "ne", doubled(e, type, x), word(e, type.bits, 0n)) as Bool;

export function isDenormal(e: Emitter, type: FloatType, x: Value): Bool {
  return distance(e, type, x, 1n, "lt_u", NORMAL[type.bits] - 1n);
}
/** Denormal, infinite or NaN, or the smallest normal number, which a rounded-up tiny result could be; also zero. */
function isNoSafeResult(e: Emitter, type: FloatType, x: Value): Bool {
  const from = NORMAL[type.bits] + 2n;
  return distance(e, type, x, from, "ge_u", INFINITE[type.bits] - from);
}
/** Denormal or NaN. */
export function isNotTame(e: Emitter, type: FloatType, x: Value): Doubt {
  const from = NORMAL[type.bits];
  return [() => distance(e, type, x, from, "gt_u", INFINITE[type.bits] - from), () => isNotZero(e, type, x)];
}
const isInfinite = (e: Emitter, type: FloatType, x: Value): Bool =>
  wordOp(e, type.bits, "eq", doubled(e, type, x), word(e, type.bits, INFINITE[type.bits])) as Bool;
/**
 * The result may be tiny, or is not finite. Infinity is right where an operand is infinite, zero unless `isWrongZero` says
 * otherwise.
 */
export function isDoubtfulResult(
  e: Emitter,
  type: FloatType,
  x: Value,
  operands: readonly Value[],
  isWrongZero: () => Bool,
): Doubt {
  const confirm = (): Bool => {
    const isRightInfinity = operands
      .map((operand) => isInfinite(e, type, operand))
      .reduce((a, b) => e.or1(a, b), e.bool(false));
    const isRightZero = e.not1(e.or1(isNotZero(e, type, x), isWrongZero()));
    return e.not1(e.or1(isRightZero, e.and1(isInfinite(e, type, x), isRightInfinity)));
  };
  return [() => isNoSafeResult(e, type, x), confirm];
}

// ---- Vectors: masks, where a lane is all ones when what is asked holds of it ----

const SIGN = { 32: 1n << 31n, 64: 1n << 63n } as const;
const constant = (e: Emitter, { bits }: FloatType, value: bigint): Vec => splatConst(e, BigInt.asUintN(bits, value), bits / 8);

/** Doubled bits, moved so that a signed comparison orders those from `from` on. */
function moved(e: Emitter, type: FloatType, x: Vec, from: bigint): Vec {
  const { integers } = type;
  return e.vec(`${integers}.add`, e.vec(`${integers}.add`, x, x), constant(e, type, SIGN[type.bits] - from));
}
export function denormalLanes(e: Emitter, type: FloatType, x: Vec): Vec {
  const limit = constant(e, type, SIGN[type.bits] + NORMAL[type.bits] - 1n);
  return e.vec(`${type.integers}.gt_s`, limit, moved(e, type, x, 1n));
}
/** As isNoSafeResult. */
export function unsafeLanes(e: Emitter, type: FloatType, x: Vec): Vec {
  const from = NORMAL[type.bits] + 2n;
  const last = constant(e, type, SIGN[type.bits] + INFINITE[type.bits] - from - 1n);
  return e.vec(`${type.integers}.gt_s`, moved(e, type, x, from), last);
}
export function zeroLanes(e: Emitter, type: FloatType, x: Vec): Vec {
  return e.vec(`${type.shape}.eq`, x, splatConst(e, 0, 8));
}
export function infiniteLanes(e: Emitter, type: FloatType, x: Vec): Vec {
  const infinity = constant(e, type, INFINITE[type.bits] >> 1n);
  return e.vec(`${type.shape}.eq`, e.vec(`${type.shape}.abs`, x), infinity);
}
/** Denormal or NaN. */
export function wildLanes(e: Emitter, type: FloatType, x: Vec): Vec {
  return e.vec("v128.or", denormalLanes(e, type, x), e.vec(`${type.shape}.ne`, x, x));
}
export function anyLane(e: Emitter, ...masks: readonly Vec[]): Bool {
  return e.scalar(
    "v128.any_true",
    masks.reduce((a, b) => e.vec("v128.or", a, b)),
  ) as Bool;
}
