/**
 * PCMPESTRI and its kin (Intel SDM Vol. 1, Comparison and Aggregation Operations): elements of two vectors are compared each with
 * each, and a bit for every element of the second says what came of it. C libraries look for characters with them, in loops: regions,
 * which know the immediate, compute them in place; the interpreter asks the helper of the same name.
 */
import { RAX, RCX, RDX } from "../cpu-state.ts";
import type { Bool, Emitter, Int, Vec } from "../emitter.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { fromLow, helperResult, laneBytes, passOperands, splatConst } from "./vector-common.ts";

/** What the immediate asks for. */
const EQUAL_ANY = 0,
  RANGES = 1,
  EQUAL_EACH = 2;
const NEGATIVE = 1,
  MASKED_NEGATIVE = 3;

/** The result of comparePackedStrings: RFLAGS bits CF, ZF, SF and OF, and the index above them. */
const INDEX_SHIFT = 16;
const ZF_BIT = 6;
const SATURATED = 255;

/** Elements of the kind that the immediate names. */
class Elements {
  readonly #e: Emitter;
  readonly shape: "i8x16" | "i16x8";
  readonly count: 8 | 16;
  readonly sign: "s" | "u";
  readonly #bytes: 1 | 2;

  constructor(e: Emitter, control: number) {
    const areWords = (control & 1) !== 0;
    this.#e = e;
    this.shape = areWords ? "i16x8" : "i8x16";
    this.count = areWords ? 8 : 16;
    this.#bytes = areWords ? 2 : 1;
    this.sign = (control & 2) !== 0 ? "s" : "u";
  }
  /** A bit for each element. */
  get all(): Int {
    return this.#e.int((1 << this.count) - 1);
  }
  compare(operation: "eq" | "ge" | "le" | "lt_u", a: Vec, b: Vec): Vec {
    const signed = operation === "ge" || operation === "le" ? `${operation}_${this.sign}` : operation;
    return this.#e.vec(`${this.shape}.${signed}`, a, b);
  }
  bits(mask: Vec): Int {
    return this.#e.fromI32(this.#e.scalar(`${this.shape}.bitmask`, mask) as Bool);
  }
  /** Element `i` of the vector in every place. */
  spread(vector: Vec, i: number): Vec {
    const lanes = Array.from({ length: 16 }, (_, at) => i * this.#bytes + (at % this.#bytes));
    return this.#e.shuffle(vector, vector, lanes);
  }
  /** Ones in the first `length` elements. */
  first(length: Int): Vec {
    const places = Array.from({ length: this.count }, (_, i) => i);
    const limit = this.#e.vec(`${this.shape}.splat`, this.#e.low32(length));
    return this.compare("lt_u", this.#e.vecConst(laneBytes(places, this.#bytes)), limit);
  }
  /** The bits of the first `length` elements. */
  firstBits(length: Int): Int {
    const e = this.#e;
    return e.sub(e.shl(e.int(1), length, 64), e.int(1), 64);
  }
  /** Up to the first element that is zero. */
  lengthOf(vector: Vec): Int {
    const e = this.#e;
    const zeros = this.bits(this.compare("eq", vector, splatConst(e, 0, 8)));
    return e.countTrailingZeros(e.or(zeros, e.int(1 << this.count)));
  }
  /** Ones in the elements whose bit is set. */
  expand(bits: Int): Vec {
    const e = this.#e;
    const places = Array.from({ length: this.count }, (_, i) => 1 << (i % 8));
    const each = e.vecConst(laneBytes(places, this.#bytes));
    const word = e.vec("i16x8.splat", e.low32(bits));
    const spread = this.#bytes === 2 ? word : e.shuffle(word, word, [...Array(8).fill(0), ...Array(8).fill(1)]);
    return this.compare("eq", e.vec("v128.and", spread, each), each);
  }
}

/** Bit j: what the aggregation says of element j of `b`. */
function aggregate(e: Emitter, kind: number, elements: Elements, a: Vec, lengthA: Int, b: Vec, lengthB: Int): Int {
  const { count, all } = elements;
  const places = Array.from({ length: count }, (_, i) => i);
  const either = (masks: Vec[]): Vec => masks.reduce((left, right) => e.vec("v128.or", left, right));
  if (kind === EQUAL_EACH) {
    const [validA, validB] = [elements.firstBits(lengthA), elements.firstBits(lengthB)];
    const equal = e.and(elements.bits(elements.compare("eq", a, b)), e.and(validA, validB));
    return e.or(equal, e.and(e.not(e.or(validA, validB), 64), all));
  }
  const validA = elements.first(lengthA);
  if (kind === EQUAL_ANY) {
    // Elements behind the end stand for the first one, if there is any
    const known = e.vec("v128.bitselect", a, elements.spread(a, 0), validA);
    const found = elements.bits(either(places.map((i) => elements.compare("eq", elements.spread(known, i), b))));
    return e.select(e.isZero(lengthA), e.int(0), e.and(found, elements.firstBits(lengthB)));
  }
  if (kind === RANGES) {
    const ranges = places.filter((i) => i % 2 === 0);
    const found = ranges.map((i) => {
      const [low, high] = [
        elements.compare("ge", b, elements.spread(a, i)),
        elements.compare("le", b, elements.spread(a, i + 1)),
      ];
      return e.vec("v128.and", e.vec("v128.and", low, high), elements.spread(validA, i + 1));
    });
    return e.and(elements.bits(either(found)), elements.firstBits(lengthB));
  }
  // Equal ordered: where `a` as a whole begins in `b`, or would behind its end
  const validB = elements.first(lengthB);
  const full = (1 << count) - 1;
  return places.reduce((held, i) => {
    const equal = e.vec("v128.and", elements.compare("eq", elements.spread(a, i), b), validB);
    const beyond = e.int(full & ~(full >> i));
    const isOver = e.select(e.ltu(e.int(i), lengthA), e.int(0), all);
    return e.and(held, e.or(e.or(e.shr(elements.bits(equal), e.int(i)), beyond), isOver));
  }, all);
}

interface Comparison {
  readonly index: Int;
  readonly mask: () => Vec;
  /** CF and ZF at their places. */
  readonly carryAndZero: Int;
  readonly isShortA: Bool;
  readonly first: Bool;
}

/** With the immediate known. `lengths`: of a and b as given; undefined: up to the first zero. */
function inPlace(e: Emitter, control: number, a: Vec, b: Vec, lengths: readonly [Int, Int] | undefined): Comparison {
  const elements = new Elements(e, control);
  const count = e.int(elements.count);
  const within = (length: Int): Int => e.select(e.ltu(length, count), length, count);
  const lengthA = lengths ? within(lengths[0]) : elements.lengthOf(a);
  const lengthB = lengths ? within(lengths[1]) : elements.lengthOf(b);
  let bits = aggregate(e, (control >> 2) & 3, elements, a, lengthA, b, lengthB);
  const polarity = (control >> 4) & 3;
  if (polarity === NEGATIVE) bits = e.xor(bits, elements.all);
  else if (polarity === MASKED_NEGATIVE) bits = e.xor(bits, elements.firstBits(lengthB));
  const result = bits;
  const wantsHigh = (control & 0x40) !== 0;
  const last = e.select(e.isZero(result), count, e.sub(e.int(63), e.countLeadingZeros(result), 64));
  const first = e.countTrailingZeros(e.or(result, e.int(1 << elements.count)));
  const isSome = e.toInt(e.not1(e.isZero(result)));
  return {
    index: wantsHigh ? last : first,
    mask: () => (wantsHigh ? elements.expand(result) : fromLow(e, result)),
    carryAndZero: e.or(isSome, e.shl(e.toInt(e.ltu(lengthB, count)), e.int(ZF_BIT), 64)),
    isShortA: e.ltu(lengthA, count),
    first: e.bit(result, 0),
  };
}

function byHelper(e: Emitter, immediate: Int, a: Vec, b: Vec, lengths: readonly [Int, Int] | undefined): Comparison {
  const above = lengths ? e.or(lengths[0], e.shl(lengths[1], e.int(8), 64)) : e.int(0x1_0000);
  const control = e.or(e.and(immediate, e.int(255)), e.shl(above, e.int(8), 64));
  passOperands(e, a, b);
  const result = e.fromI32(e.helper("comparePackedStrings", e.low32(control)));
  return {
    index: e.shr(result, e.int(INDEX_SHIFT)),
    mask: () => helperResult(e),
    carryAndZero: e.and(result, e.int(0x41)),
    isShortA: e.bit(result, 7),
    first: e.bit(result, 11),
  };
}

function stringRow(mnemonic: string, opcode: string, isExplicit: boolean, givesMask: boolean): Instruction {
  const operands = `xmm, xmm/m128, imm8${givesMask ? ", XMM0" : ""}`;
  const forms: Form[] = [form(`66 0F 3A ${opcode} /r ib`, operands)];
  if (isExplicit) forms.push(form(`66 REX.W 0F 3A ${opcode} /r ib`, operands, "only64"));
  return instruction(mnemonic, {
    source: sdm("2B", mnemonic),
    requires: ["sse"],
    forms,
    semantics(e, [left, right, immediate, mask]) {
      const b = e.readVec(right);
      const a = e.readVec(left);
      // Lengths are signed and saturate: their magnitude up to 255 is all that matters
      const length = (register: number): Int => {
        const value = e.reg(register, e.size);
        const isNegative = e.lts(e.signExtend(value, e.size), e.int(0));
        const magnitude = e.select(isNegative, e.neg(value), value);
        return e.select(e.ltu(magnitude, e.int(SATURATED)), magnitude, e.int(SATURATED));
      };
      const lengths = isExplicit ? ([length(RAX), length(RDX)] as const) : undefined;
      const control = e.read(immediate);
      const known = e.valueOf(control);
      const comparison =
        known === undefined ? byHelper(e, control, a, b, lengths) : inPlace(e, Number(known & 0xffn), a, b, lengths);
      if (givesMask) e.writeVec(mask, comparison.mask());
      else e.setReg(RCX, 32, comparison.index);
      e.recordComparison(comparison.carryAndZero);
      e.setFlag("SF", comparison.isShortA);
      e.setFlag("OF", comparison.first);
    },
  });
}

export const packedStrings: readonly Instruction[] = [
  stringRow("PCMPESTRM", "60", true, true),
  stringRow("PCMPESTRI", "61", true, false),
  stringRow("PCMPISTRM", "62", false, true),
  stringRow("PCMPISTRI", "63", false, false),
];
