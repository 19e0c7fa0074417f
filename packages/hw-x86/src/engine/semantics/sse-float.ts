/**
 * SSE and SSE2 floating point. Each row computes with WebAssembly and takes that result only where it is known to be what the
 * processor gives, flags included: MXCSR as usual (float-checks.ts), no denormal, NaN or overflow in sight, and no flag set that
 * was not set before. All else goes to the exact helpers of fpu/sse.ts.
 */
import type { Bool, Doubt, Emitter, Value, Vec } from "../emitter.ts";
import { PREDICATES, SSE_OPERATION } from "../fpu/sse.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import {
  anyLane,
  denormalLanes,
  FLOAT_TYPES,
  type FloatType,
  infiniteLanes,
  isDenormal,
  isDoubtfulResult,
  isNotTame,
  isPrecisionClear,
  isUnusual,
  replaceScalar,
  scalarOf,
  unsafeLanes,
  wildLanes,
  zeroLanes,
} from "./float-checks.ts";
import { helperResult, passOperands, splatConst } from "./vector-common.ts";

/** Reads the operands in the order of their faults. */
function operandsOf(e: Emitter, type: FloatType, dst: FormOperand, src: FormOperand): { a: Vec; b: Vec } {
  if (type.packed) e.checkAligned(src);
  const b = e.readVec(src);
  return { a: e.readVec(dst), b };
}

function exact(e: Emitter, type: FloatType, a: Vec, b: Vec, operation: number, predicate: number | Bool = 0): Vec {
  passOperands(e, a, b);
  e.helper("sseCompute", operation, type.bits, type.lanes, predicate);
  return helperResult(e);
}

/** How WebAssembly computes an operation, and what is known of its results. */
export interface Arithmetic {
  readonly operation: number;
  readonly opcode: string;
  readonly name: "add" | "sub" | "mul" | "div" | "sqrt";
  /** The second operand is all there is. */
  readonly isUnary?: true;
  /** Scalars: a zero result is no exact one. Undefined: zeros are exact. */
  readonly isWrongZero?: (e: Emitter, type: FloatType, a: Value, b: Value) => Bool;
  /** Vectors: lanes whose zero results are exact ones. */
  readonly exactZeros?: (e: Emitter, type: FloatType, a: Vec, b: Vec) => Vec;
}
export const ARITHMETIC: Readonly<Record<string, Arithmetic>> = {
  ADD: { operation: SSE_OPERATION.add, opcode: "58", name: "add" },
  SUB: { operation: SSE_OPERATION.subtract, opcode: "5C", name: "sub" },
  MUL: {
    operation: SSE_OPERATION.multiply,
    opcode: "59",
    name: "mul",
    isWrongZero: (e, type, a, b) => e.and1(differsFromZero(e, type, a), differsFromZero(e, type, b)),
    exactZeros: (e, type, a, b) => e.vec("v128.or", zeroLanes(e, type, a), zeroLanes(e, type, b)),
  },
  DIV: {
    operation: SSE_OPERATION.divide,
    opcode: "5E",
    name: "div",
    isWrongZero: (e, type, a) => differsFromZero(e, type, a),
    exactZeros: (e, type, a) => zeroLanes(e, type, a),
  },
  SQRT: { operation: SSE_OPERATION.squareRoot, opcode: "51", name: "sqrt", isUnary: true },
};
function differsFromZero(e: Emitter, type: FloatType, x: Value): Bool {
  const zero = type.bits === 64 ? e.scalar("f64.convert_i32_s", e.bool(false)) : e.scalar("f32.convert_i32_s", e.bool(false));
  return e.scalar(`f${type.bits}.ne`, x, zero) as Bool;
}

const operandsUsed = <V>({ isUnary }: Arithmetic, a: V, b: V): V[] => (isUnary ? [b] : [a, b]);
/** Operands whose being denormal would set a flag, as far as that is not known. */
function suspects(e: Emitter, type: FloatType, row: Arithmetic, a: Vec, b: Vec): Vec[] {
  return operandsUsed(row, a, b).filter((operand) => !e.knowsOf(operand, type.tame));
}

function scalarArithmetic(e: Emitter, type: FloatType, row: Arithmetic, a: Vec, b: Vec): Vec {
  const [x, y] = [scalarOf(e, type, a), scalarOf(e, type, b)];
  const name = `f${type.bits}.${row.name}`;
  const operands = operandsUsed(row, x, y);
  const result = e.scalar(name, ...operands);
  const whole = replaceScalar(e, type, a, result);
  const doubts: Doubt[] = [
    [() => isUnusual(e)],
    ...suspects(e, type, row, a, b).map((operand): Doubt => [() => isDenormal(e, type, operand === a ? x : y)]),
    isDoubtfulResult(e, type, result, operands, () => row.isWrongZero?.(e, type, x, y) ?? e.bool(false)),
    [() => isPrecisionClear(e), () => e.mayBeRounded(row.operation, type.bits, 1, a, b, whole)],
  ];
  return e.unless(doubts, whole, () => exact(e, type, a, b, row.operation));
}

/** `onDoubt` computes what is not certain; the exact operation unless given. */
export function packedArithmetic(
  e: Emitter,
  type: FloatType,
  row: Arithmetic,
  a: Vec,
  b: Vec,
  onDoubt: () => Vec = () => exact(e, type, a, b, row.operation),
): Vec {
  const name = `${type.shape}.${row.name}`;
  const operands = operandsUsed(row, a, b);
  const result = e.vec(name, ...operands);
  const denormal = suspects(e, type, row, a, b).map((operand) => denormalLanes(e, type, operand));
  const unsafe = unsafeLanes(e, type, result);
  const confirm = (): Bool => {
    const zero = zeroLanes(e, type, result);
    const rightZero = row.exactZeros === undefined ? zero : e.vec("v128.and", zero, row.exactZeros(e, type, a, b));
    const fromInfinity = operands.map((operand) => infiniteLanes(e, type, operand)).reduce((x, y) => e.vec("v128.or", x, y));
    const rightInfinity = e.vec("v128.and", infiniteLanes(e, type, result), fromInfinity);
    return anyLane(e, ...denormal, e.vec("v128.andnot", unsafe, e.vec("v128.or", rightZero, rightInfinity)));
  };
  const doubts: Doubt[] = [
    [() => isUnusual(e)],
    [() => anyLane(e, ...denormal, unsafe), confirm],
    [() => isPrecisionClear(e), () => e.mayBeRounded(row.operation, type.bits, type.lanes, a, b, result)],
  ];
  return e.unless(doubts, result, onDoubt);
}

const arithmetic = Object.entries(ARITHMETIC).flatMap(([name, row]) =>
  FLOAT_TYPES.map((type) =>
    instruction(name + type.suffix, {
      source: sdm("2A", name + type.suffix),
      requires: ["sse"],
      forms: [form(`${type.prefix} 0F ${row.opcode} /r`, `xmm, ${type.source}`)],
      semantics(e, [dst, src]) {
        const { a, b } = operandsOf(e, type, dst, src);
        const result = (type.packed ? packedArithmetic : scalarArithmetic)(e, type, row, a, b);
        e.learn("usual");
        for (const operand of operandsUsed(row, a, b)) e.learnOf(operand, type.tame);
        e.learnOf(result, type.tame);
        e.writeVec(dst, result);
      },
    }),
  ),
);

/** Comparisons ask no more than that numbers are in order: MXCSR does not matter then. */
function isUnordered(e: Emitter, type: FloatType, a: Vec, b: Vec): Doubt[] {
  const operands = [a, b].filter((operand) => !e.knowsOf(operand, type.tame));
  if (operands.length === 0) return [];
  if (type.packed) return [[() => anyLane(e, ...operands.map((operand) => wildLanes(e, type, operand)))]];
  return operands.map((operand) => isNotTame(e, type, scalarOf(e, type, operand)));
}
/** The low lane of a vector result, or all of it. */
function overDestination(e: Emitter, type: FloatType, result: Vec, destination: Vec): Vec {
  return type.packed ? result : replaceScalar(e, type, destination, scalarOf(e, type, result));
}

/** The second operand unless the first is less (greater), which is how WebAssembly's pmin and pmax have it, in reverse order. */
function extremes(name: string, opcode: string, operation: number, pseudo: "pmin" | "pmax"): Instruction[] {
  return FLOAT_TYPES.map((type) =>
    instruction(name + type.suffix, {
      source: sdm("2B", name + type.suffix),
      requires: ["sse"],
      forms: [form(`${type.prefix} 0F ${opcode} /r`, `xmm, ${type.source}`)],
      semantics(e, [dst, src]) {
        const { a, b } = operandsOf(e, type, dst, src);
        const fast = overDestination(e, type, e.vec(`${type.shape}.${pseudo}`, b, a), a);
        const areTame = e.knowsOf(a, type.tame) && e.knowsOf(b, type.tame);
        const result = e.unless(isUnordered(e, type, a, b), fast, () => exact(e, type, a, b, operation));
        if (areTame) e.learnOf(result, type.tame);
        e.writeVec(dst, result);
      },
    }),
  );
}

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

/** Lanes for which the predicate holds, of numbers that are ordered. */
function compareLanes(e: Emitter, type: FloatType, a: Vec, b: Vec, predicate: ReturnType<Emitter["read"]>): Vec {
  const { less, equal, greater } = PREDICATES;
  const orderings = [
    [less, "lt"],
    [equal, "eq"],
    [greater, "gt"],
  ] as const;
  const known = e.valueOf(predicate);
  const or = (x: Vec, y: Vec): Vec => e.vec("v128.or", x, y);
  if (known !== undefined) {
    const held = orderings.filter(([table]) => ((table >>> Number(known & 15n)) & 1) !== 0).map(([, name]) => name);
    if (held.length === 0 || held.length === 3) return splatConst(e, held.length === 0 ? 0 : -1, 8);
    const name =
      held.length === 1 ? held[0] : ({ "lt eq": "le", "eq gt": "ge", "lt gt": "ne" } as const)[held.join(" ") as "lt eq"];
    return e.vec(`${type.shape}.${name}`, a, b);
  }
  const low = e.and(predicate, e.int(15));
  const parts = orderings.map(([table, name]) => {
    const mask = e.vec("i64x2.splat", e.select(e.bit(e.int(table), low), e.int(-1), e.int(0)));
    return e.vec("v128.and", e.vec(`${type.shape}.${name}`, a, b), mask);
  });
  return parts.reduce(or);
}
const compareRows = FLOAT_TYPES.map((type) =>
  instruction(`CMP${type.suffix}`, {
    source: sdm("2A", `CMP${type.suffix} - Compare Values`),
    requires: ["sse"],
    forms: [form(`${type.prefix} 0F C2 /r ib`, `xmm, ${type.source}, imm8`)],
    semantics(e, [dst, src, immediate]) {
      const { a, b } = operandsOf(e, type, dst, src);
      // VEX-encoded forms have more predicates
      const predicate = e.and(e.read(immediate), e.int(immediate.view === undefined ? 7 : 31));
      const fast = overDestination(e, type, compareLanes(e, type, a, b, predicate), a);
      const slow = (): Vec => exact(e, type, a, b, SSE_OPERATION.compare, e.low32(predicate));
      e.writeVec(dst, e.unless(isUnordered(e, type, a, b), fast, slow));
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
        const [x, y] = [scalarOf(e, type, a), scalarOf(e, type, b)];
        const is = (comparison: string): ReturnType<Emitter["int"]> =>
          e.toInt(e.scalar(`f${type.bits}.${comparison}`, x, y) as Bool);
        const fast = e.or(e.shl(is("eq"), e.int(6), 64), is("lt"));
        const flags = e.unless(isUnordered(e, type, a, b), fast, () => {
          passOperands(e, a, b);
          return e.fromI32(e.helper("sseCompareFlags", type.bits, quietSignals));
        });
        e.recordComparison(flags);
      },
    }),
  );
}

export const sseFloat: readonly Instruction[] = [
  ...arithmetic,
  ...extremes("MIN", "5D", SSE_OPERATION.minimum, "pmin"),
  ...extremes("MAX", "5F", SSE_OPERATION.maximum, "pmax"),
  ...approximation("RCP", "53", 0),
  ...approximation("RSQRT", "52", 1),
  ...compareRows,
  ...compareFlags("UCOMI", "2E", 0),
  ...compareFlags("COMI", "2F", 1),
];
