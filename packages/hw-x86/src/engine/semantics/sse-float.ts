/**
 * SSE and SSE2 floating point. Each row computes with WebAssembly and takes that result only where it is known to be what the
 * processor gives, flags included: rounding to nearest, everything masked, DAZ and FTZ off, the precision flag already set (so
 * that its being set again is no news), no denormal, NaN or overflow in sight. All else goes to the exact helpers of fpu/sse.ts.
 */
import { state } from "../cpu-state.ts";
import type { Bool, Emitter, Vec } from "../emitter.ts";
import { SSE_OPERATION } from "../fpu/sse.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { either, helperResult, mergeLow, passOperands, splatConst } from "./vector-common.ts";

/** One of the four types that an operation comes in: PS, SS, PD, SD. */
export interface FloatType {
  readonly suffix: "PS" | "SS" | "PD" | "SD";
  readonly prefix: "NP" | "F3" | "66" | "F2";
  readonly bits: 32 | 64;
  readonly packed: boolean;
  readonly shape: "f32x4" | "f64x2";
  readonly lanes: number;
  /** Operand column of the source. */
  readonly source: string;
}
export const FLOAT_TYPES: readonly FloatType[] = [
  { suffix: "PS", prefix: "NP", bits: 32, packed: true, shape: "f32x4", lanes: 4, source: "xmm/m128" },
  { suffix: "SS", prefix: "F3", bits: 32, packed: false, shape: "f32x4", lanes: 1, source: "xmm/m32" },
  { suffix: "PD", prefix: "66", bits: 64, packed: true, shape: "f64x2", lanes: 2, source: "xmm/m128" },
  { suffix: "SD", prefix: "F2", bits: 64, packed: false, shape: "f64x2", lanes: 1, source: "xmm/m64" },
];

/** Largest finite and smallest normal number. */
const MAXIMUM = { 32: 0x7f7f_ffffn, 64: 0x7fef_ffff_ffff_ffffn } as const;
const MINIMUM = { 32: 0x0080_0000n, 64: 0x0010_0000_0000_0000n } as const;

/** MXCSR without the flags other than PE: rounding to nearest, all masked, no DAZ, no FTZ, PE set. */
const PLAIN_MASK = 0xffe0;
const PLAIN = 0x1fa0;
/** WebAssembly's rounding and masked exceptions are what MXCSR asks for, and a result that is inexact raises nothing new. */
export function isPlain(e: Emitter): Bool {
  return e.eq(e.and(e.state(state.mxcsr, 32), e.int(PLAIN_MASK)), e.int(PLAIN));
}

const constant = (e: Emitter, type: FloatType, value: bigint): Vec => splatConst(e, value, type.bits / 8);

/** Lanes that are zero, infinite or normal: neither denormal nor NaN. */
export function isOrdinary(e: Emitter, type: FloatType, x: Vec): Vec {
  const magnitude = e.vec(`${type.shape}.abs`, x);
  const isNormal = e.vec(`${type.shape}.ge`, magnitude, constant(e, type, MINIMUM[type.bits]));
  return e.vec("v128.or", isNormal, e.vec(`${type.shape}.eq`, x, constant(e, type, 0n)));
}
function isFinite_(e: Emitter, type: FloatType, x: Vec): Vec {
  return e.vec(`${type.shape}.le`, e.vec(`${type.shape}.abs`, x), constant(e, type, MAXIMUM[type.bits]));
}
/** Finite and above the smallest normal number, which a rounded-up tiny result could be. */
export function isSafeResult(e: Emitter, type: FloatType, x: Vec): Vec {
  const isAbove = e.vec(`${type.shape}.gt`, e.vec(`${type.shape}.abs`, x), constant(e, type, MINIMUM[type.bits]));
  return e.vec("v128.and", isAbove, isFinite_(e, type, x));
}
function isZero(e: Emitter, type: FloatType, x: Vec): Vec {
  return e.vec(`${type.shape}.eq`, x, constant(e, type, 0n));
}
/** True when the mask is set in every lane that the operation computes. */
export function inAllLanes(e: Emitter, type: FloatType, mask: Vec): Bool {
  if (type.packed) return e.scalar(type.bits === 32 ? "i32x4.all_true" : "i64x2.all_true", mask) as Bool;
  const lowWord = e.lane("i32x4.extract_lane", 0, mask) as Bool;
  return e.and1(lowWord, e.bool(true));
}

/** Reads the operands in the order of their faults. */
function operandsOf(e: Emitter, type: FloatType, dst: FormOperand, src: FormOperand): { a: Vec; b: Vec } {
  if (type.packed) e.checkAligned(src);
  const b = e.readVec(src);
  return { a: e.readVec(dst), b };
}
/** A result's computed lanes over the destination's others. */
export function complete(e: Emitter, type: FloatType, result: Vec, destination: Vec): Vec {
  return type.packed ? result : mergeLow(e, result, destination, type.bits);
}

function exact(e: Emitter, type: FloatType, a: Vec, b: Vec, operation: number, predicate: number | Bool = 0): Vec {
  passOperands(e, a, b);
  e.helper("sseCompute", operation, type.bits, type.lanes, predicate);
  return helperResult(e);
}

interface Fast {
  result: Vec;
  /** Lanes whose result and flags are right. */
  good: Vec;
  /** Whether MXCSR matters to that. */
  needsPlain: boolean;
}

function rows(
  name: string,
  opcode: string,
  operation: number,
  fast: (e: Emitter, type: FloatType, a: Vec, b: Vec) => Fast,
): Instruction[] {
  return FLOAT_TYPES.map((type) =>
    instruction(name + type.suffix, {
      source: sdm("2A", name + type.suffix),
      requires: ["sse"],
      forms: [form(`${type.prefix} 0F ${opcode} /r`, `xmm, ${type.source}`)],
      semantics(e, [dst, src]) {
        const { a, b } = operandsOf(e, type, dst, src);
        const { result, good, needsPlain } = fast(e, type, a, b);
        const lanesGood = inAllLanes(e, type, good);
        const condition = needsPlain ? e.and1(isPlain(e), lanesGood) : lanesGood;
        e.writeVec(
          dst,
          either(e, condition, complete(e, type, result, a), () => exact(e, type, a, b, operation)),
        );
      },
    }),
  );
}

const and = (e: Emitter, ...masks: Vec[]): Vec => masks.reduce((x, y) => e.vec("v128.and", x, y));
const or = (e: Emitter, a: Vec, b: Vec): Vec => e.vec("v128.or", a, b);
const bothOrdinary = (e: Emitter, type: FloatType, a: Vec, b: Vec): Vec =>
  and(e, isOrdinary(e, type, a), isOrdinary(e, type, b));

/** Sums of normal numbers: a tiny sum is exact, so a finite result is all that it takes. */
const sum =
  (operation: "add" | "sub") =>
  (e: Emitter, type: FloatType, a: Vec, b: Vec): Fast => {
    const result = e.vec(`${type.shape}.${operation}`, a, b);
    return { result, good: and(e, bothOrdinary(e, type, a, b), isFinite_(e, type, result)), needsPlain: true };
  };

const product = (e: Emitter, type: FloatType, a: Vec, b: Vec): Fast => {
  const result = e.vec(`${type.shape}.mul`, a, b);
  const exactZero = and(e, or(e, isZero(e, type, a), isZero(e, type, b)), isZero(e, type, result));
  const good = and(e, bothOrdinary(e, type, a, b), or(e, isSafeResult(e, type, result), exactZero));
  return { result, good, needsPlain: true };
};
const quotient = (e: Emitter, type: FloatType, a: Vec, b: Vec): Fast => {
  const result = e.vec(`${type.shape}.div`, a, b);
  const exactZero = and(e, isZero(e, type, a), isZero(e, type, result));
  const good = and(e, bothOrdinary(e, type, a, b), or(e, isSafeResult(e, type, result), exactZero));
  return { result, good, needsPlain: true };
};
const root = (e: Emitter, type: FloatType, _a: Vec, b: Vec): Fast => {
  const result = e.vec(`${type.shape}.sqrt`, b);
  return { result, good: and(e, isOrdinary(e, type, b), isFinite_(e, type, result)), needsPlain: true };
};
/** The second operand unless the first is less (greater): WebAssembly's min and max have other rules. */
const extreme =
  (comparison: "lt" | "gt") =>
  (e: Emitter, type: FloatType, a: Vec, b: Vec): Fast => {
    const result = e.vec("v128.bitselect", a, b, e.vec(`${type.shape}.${comparison}`, a, b));
    return { result, good: bothOrdinary(e, type, a, b), needsPlain: false };
  };

const arithmetic = [
  ...rows("ADD", "58", SSE_OPERATION.add, sum("add")),
  ...rows("SUB", "5C", SSE_OPERATION.subtract, sum("sub")),
  ...rows("MUL", "59", SSE_OPERATION.multiply, product),
  ...rows("DIV", "5E", SSE_OPERATION.divide, quotient),
  ...rows("MIN", "5D", SSE_OPERATION.minimum, extreme("lt")),
  ...rows("MAX", "5F", SSE_OPERATION.maximum, extreme("gt")),
  ...rows("SQRT", "51", SSE_OPERATION.squareRoot, root),
];

/** Full-precision 1/x and 1/sqrt(x); silicon promises 12 bits of them, and each maker's differ in the rest. */
function approximation(name: string, opcode: string, isRoot: number): Instruction[] {
  return FLOAT_TYPES.filter((type) => type.bits === 32).map((type) =>
    instruction(name + type.suffix, {
      source: sdm("2B", name + type.suffix),
      requires: ["sse"],
      forms: [form(`${type.prefix} 0F ${opcode} /r`, `xmm, ${type.source}`)],
      semantics(e, [dst, src]) {
        const { a, b } = operandsOf(e, type, dst, src);
        passOperands(e, a, b);
        e.helper("sseApproximate", isRoot, type.lanes);
        e.writeVec(dst, helperResult(e));
      },
    }),
  );
}

/** Predicates 0 to 2 by WebAssembly's comparison; 3 (unordered) never holds among ordinary numbers; 4 more negates. */
const compareRows = FLOAT_TYPES.map((type) =>
  instruction(`CMP${type.suffix}`, {
    source: sdm("2A", `CMP${type.suffix} - Compare Values`),
    requires: ["sse"],
    forms: [form(`${type.prefix} 0F C2 /r ib`, `xmm, ${type.source}, imm8`)],
    semantics(e, [dst, src, immediate]) {
      const { a, b } = operandsOf(e, type, dst, src);
      const predicate = e.and(e.read(immediate), e.int(7));
      const mask = (bit: Bool): Vec => e.vec("i64x2.splat", e.select(bit, e.int(-1), e.int(0)));
      const kind = e.and(predicate, e.int(3));
      const wantsEqual = e.or1(e.isZero(kind), e.eq(kind, e.int(2)));
      const wantsLess = e.or1(e.eq(kind, e.int(1)), e.eq(kind, e.int(2)));
      const equal = and(e, e.vec(`${type.shape}.eq`, a, b), mask(wantsEqual));
      const less = and(e, e.vec(`${type.shape}.lt`, a, b), mask(wantsLess));
      const result = e.vec("v128.xor", or(e, equal, less), mask(e.bit(predicate, 2)));
      const good = inAllLanes(e, type, bothOrdinary(e, type, a, b));
      e.writeVec(
        dst,
        either(e, good, complete(e, type, result, a), () => exact(e, type, a, b, SSE_OPERATION.compare, e.low32(predicate))),
      );
    },
  }),
);

/** COMIS: quiet NaNs signal; UCOMIS: they do not. ZF, PF, CF tell the order; OF, SF, AF are cleared. */
function compareFlags(name: string, opcode: string, quietSignals: number): Instruction[] {
  return FLOAT_TYPES.filter((type) => !type.packed).map((type) =>
    instruction(name + type.suffix, {
      source: sdm("2A", `${name}${type.suffix} - Compare Scalar Ordered or Unordered Values and Set EFLAGS`),
      requires: ["sse"],
      forms: [form(`${type.bits === 32 ? "NP" : "66"} 0F ${opcode} /r`, `xmm, ${type.source}`)],
      semantics(e, [dst, src]) {
        const b = e.readVec(src);
        const a = e.readVec(dst);
        const lowMask = (name_: string): Bool => inAllLanes(e, type, e.vec(`${type.shape}.${name_}`, a, b));
        const fast = e.or(e.shl(e.toInt(lowMask("eq")), e.int(6), 64), e.toInt(lowMask("lt")));
        const flags = e.variable("i64", fast);
        e.if(e.not1(inAllLanes(e, type, bothOrdinary(e, type, a, b))), () => {
          passOperands(e, a, b);
          flags.set(e.fromI32(e.helper("sseCompareFlags", type.bits, quietSignals)));
        });
        e.writeArithmeticFlags(e.or(e.and(e.readFlags(), e.int(0x400)), flags.get()));
      },
    }),
  );
}

export const sseFloat: readonly Instruction[] = [
  ...arithmetic,
  ...approximation("RCP", "53", 0),
  ...approximation("RSQRT", "52", 1),
  ...compareRows,
  ...compareFlags("UCOMI", "2E", 0),
  ...compareFlags("COMI", "2F", 1),
];
