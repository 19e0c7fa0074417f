/** Arithmetic on `Num`: exact, then rounded once to a format. NaNs, infinities and zeros included, exception flags recorded. */
import {
  bitLength,
  DE,
  DEFAULT_NAN,
  type FloatContext,
  type FloatFormat,
  IE,
  infinity,
  isNan,
  type Num,
  num,
  PE,
  quieted,
  round,
  type Sign,
  shiftRounded,
  ZE,
  zero,
} from "./float-format.ts";

/** Which NaN an operation with a NaN operand gives: the rules of x87 and of SSE differ. */
export type NanRule = (a: Num, b: Num) => Num;

/** SSE: the first operand if it is a NaN, else the second, made quiet. */
export const sseNan: NanRule = (a, b) => quieted(isNan(a) ? a : b);

/** x87: a quiet NaN wins over a signalling one, otherwise the larger significand, otherwise the positive one. */
export const x87Nan: NanRule = (a, b) => {
  if (!isNan(b)) return quieted(a);
  if (!isNan(a)) return quieted(b);
  if (a.kind !== b.kind) return quieted(a.kind === "quiet" ? a : b);
  if (a.significand !== b.significand) return quieted(a.significand > b.significand ? a : b);
  return quieted(a.sign === 0 ? a : b);
};

function invalid(context: FloatContext): Num {
  context.flags |= IE;
  return DEFAULT_NAN;
}

/**
 * What precedes every operation of two operands: invalid encodings and NaNs give the result, otherwise undefined.
 * A quiet NaN outranks the denormal-operand exception.
 */
function special(context: FloatContext, rule: NanRule, a: Num, b: Num): Num | undefined {
  if (a.kind === "unsupported" || b.kind === "unsupported") return invalid(context);
  if (!isNan(a) && !isNan(b)) return undefined;
  if (a.kind === "signalling" || b.kind === "signalling") context.flags |= IE;
  return rule(a, b);
}

function noteDenormal(context: FloatContext, a: Num, b: Num): void {
  if (a.denormal || b.denormal) context.flags |= DE;
}

/** Beyond this distance of exponents the smaller summand is only a sticky bit. */
const FAR = 140;

export function add(context: FloatContext, format: FloatFormat, rule: NanRule, a: Num, b: Num): Num {
  const given = special(context, rule, a, b);
  if (given !== undefined) return given;
  if (a.kind === "infinity" && b.kind === "infinity" && a.sign !== b.sign) return invalid(context);
  noteDenormal(context, a, b);
  if (a.kind === "infinity") return a;
  if (b.kind === "infinity") return b;
  if (a.kind === "zero" && b.kind === "zero") {
    return a.sign === b.sign ? a : zero(cancelledSign(context));
  }
  if (a.kind === "zero") return round(context, format, b.sign, b.exponent, b.significand);
  if (b.kind === "zero") return round(context, format, a.sign, a.exponent, a.significand);
  const [high, low] = a.exponent >= b.exponent ? [a, b] : [b, a];
  let distance = high.exponent - low.exponent;
  let small = low.significand;
  if (distance > FAR + bitLength(small)) {
    distance = FAR;
    small = 1n;
  }
  const large = high.significand << BigInt(distance);
  const sum = (high.sign === 1 ? -large : large) + (low.sign === 1 ? -small : small);
  if (sum === 0n) return zero(cancelledSign(context));
  return round(context, format, sum < 0n ? 1 : 0, high.exponent - distance, sum < 0n ? -sum : sum);
}

/** Sign of an exact zero sum of non-zero or opposite operands. */
const cancelledSign = (context: FloatContext): Sign => (context.rounding === 1 ? 1 : 0);

/** a - b. NaNs propagate with the sign that they came with. */
export function subtract(context: FloatContext, format: FloatFormat, rule: NanRule, a: Num, b: Num): Num {
  if (isNan(b)) return add(context, format, rule, a, b);
  return add(context, format, rule, a, { ...b, sign: b.sign === 0 ? 1 : 0 });
}

const signOf = (a: Num, b: Num): Sign => (a.sign === b.sign ? 0 : 1);

export function multiply(context: FloatContext, format: FloatFormat, rule: NanRule, a: Num, b: Num): Num {
  const given = special(context, rule, a, b);
  if (given !== undefined) return given;
  const sign = signOf(a, b);
  if (a.kind === "infinity" || b.kind === "infinity") {
    if (a.kind === "zero" || b.kind === "zero") return invalid(context);
    noteDenormal(context, a, b);
    return infinity(sign);
  }
  noteDenormal(context, a, b);
  if (a.kind === "zero" || b.kind === "zero") return zero(sign);
  return round(context, format, sign, a.exponent + b.exponent, a.significand * b.significand);
}

/**
 * a * b + c, rounded once; the product or the addend negated where asked. NaNs come through with the sign that they came with, the first
 * of a, b and c that is one. A quiet NaN as the addend hides that infinity times zero is invalid.
 */
export function multiplyAdd(
  context: FloatContext,
  format: FloatFormat,
  a: Num,
  b: Num,
  c: Num,
  negatesProduct: boolean,
  negatesAddend: boolean,
): Num {
  const operands = [a, b, c];
  if (operands.some(isNan)) {
    if (operands.some(({ kind }) => kind === "signalling")) context.flags |= IE;
    return quieted(operands.find(isNan) as Num);
  }
  const opposite = (sign: Sign, isNegated: boolean): Sign => (isNegated ? (sign === 0 ? 1 : 0) : sign);
  const sign = opposite(signOf(a, b), negatesProduct);
  const addend: Num = { ...c, sign: opposite(c.sign, negatesAddend) };
  const isInfinite = a.kind === "infinity" || b.kind === "infinity";
  if (isInfinite && (a.kind === "zero" || b.kind === "zero")) return invalid(context);
  if (isInfinite && addend.kind === "infinity" && addend.sign !== sign) return invalid(context);
  noteDenormal(context, a, b);
  noteDenormal(context, c, c);
  if (isInfinite) return infinity(sign);
  const isZero = a.kind === "zero" || b.kind === "zero";
  const product = isZero ? zero(sign) : num("finite", sign, a.exponent + b.exponent, a.significand * b.significand);
  return add(context, format, sseNan, product, { ...addend, denormal: false });
}

export function divide(context: FloatContext, format: FloatFormat, rule: NanRule, a: Num, b: Num): Num {
  const given = special(context, rule, a, b);
  if (given !== undefined) return given;
  const sign = signOf(a, b);
  if (a.kind === "infinity" && b.kind === "infinity") return invalid(context);
  if (a.kind === "zero" && b.kind === "zero") return invalid(context);
  if (b.kind === "zero" && a.kind === "finite") {
    context.flags |= ZE;
    return infinity(sign);
  }
  noteDenormal(context, a, b);
  if (a.kind === "infinity") return infinity(sign);
  if (a.kind === "zero" || b.kind === "infinity") return zero(sign);
  const shift = Math.max(0, 68 + bitLength(b.significand) - bitLength(a.significand));
  const dividend = a.significand << BigInt(shift);
  const quotient = dividend / b.significand;
  const sticky = quotient * b.significand === dividend ? 0n : 1n;
  return round(context, format, sign, a.exponent - b.exponent - shift - 1, (quotient << 1n) | sticky);
}

/** Largest integer whose square is at most `value`. */
export function integerSquareRoot(value: bigint): bigint {
  if (value < 2n) return value;
  let root = 1n << BigInt((bitLength(value) + 1) >> 1);
  for (;;) {
    const next = (root + value / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}

export function squareRoot(context: FloatContext, format: FloatFormat, a: Num): Num {
  if (a.kind === "unsupported") return invalid(context);
  if (isNan(a)) {
    if (a.kind === "signalling") context.flags |= IE;
    return quieted(a);
  }
  if (a.kind === "zero") return a;
  if (a.sign === 1) return invalid(context);
  if (a.denormal) context.flags |= DE;
  if (a.kind === "infinity") return a;
  let shift = Math.max(0, 134 - bitLength(a.significand));
  if (((a.exponent - shift) & 1) !== 0) shift++;
  const square = a.significand << BigInt(shift);
  const root = integerSquareRoot(square);
  const sticky = root * root === square ? 0n : 1n;
  return round(context, format, 0, (a.exponent - shift) / 2 - 1, (root << 1n) | sticky);
}

/** less, equal, greater, unordered. */
export type Ordering = -1 | 0 | 1 | undefined;

/** Compares; a quiet NaN raises IE only if `quietSignals`. */
export function compare(context: FloatContext, a: Num, b: Num, quietSignals: boolean): Ordering {
  if (a.kind === "unsupported" || b.kind === "unsupported") {
    context.flags |= IE;
    return undefined;
  }
  if (isNan(a) || isNan(b)) {
    if (quietSignals || a.kind === "signalling" || b.kind === "signalling") context.flags |= IE;
    return undefined;
  }
  noteDenormal(context, a, b);
  return order(a, b);
}

/** Orders two numbers that are no NaNs. */
export function order(a: Num, b: Num): -1 | 0 | 1 {
  if (a.kind === "zero" && b.kind === "zero") return 0;
  if (a.kind === "zero") return b.sign === 1 ? 1 : -1;
  if (b.kind === "zero") return a.sign === 1 ? -1 : 1;
  if (a.sign !== b.sign) return a.sign === 1 ? -1 : 1;
  const magnitude = orderMagnitude(a, b);
  return a.sign === 1 ? ((0 - magnitude) as -1 | 0 | 1) : magnitude;
}

function orderMagnitude(a: Num, b: Num): -1 | 0 | 1 {
  if (a.kind === "infinity" || b.kind === "infinity") {
    if (a.kind === b.kind) return 0;
    return a.kind === "infinity" ? 1 : -1;
  }
  const topA = a.exponent + bitLength(a.significand);
  const topB = b.exponent + bitLength(b.significand);
  if (topA !== topB) return topA < topB ? -1 : 1;
  const low = Math.min(a.exponent, b.exponent);
  const x = a.significand << BigInt(a.exponent - low);
  const y = b.significand << BigInt(b.exponent - low);
  return x < y ? -1 : x > y ? 1 : 0;
}

/** The same number in another format: NaNs made quiet, the rest rounded. `noteDenormals`: false where the manual lists no #D. */
export function convert(context: FloatContext, format: FloatFormat, a: Num, noteDenormals: boolean): Num {
  if (a.kind === "unsupported") return invalid(context);
  if (isNan(a)) {
    if (a.kind === "signalling") context.flags |= IE;
    return quieted(a);
  }
  if (noteDenormals && a.denormal) context.flags |= DE;
  if (a.kind !== "finite") return a;
  return round(context, format, a.sign, a.exponent, a.significand);
}

export function fromInteger(value: bigint): Num {
  if (value === 0n) return zero(0);
  return num("finite", value < 0n ? 1 : 0, 0, value < 0n ? -value : value);
}

/** Rounded to an integer that stays a floating-point number. Denormal operands are the caller's to report. */
export function roundToInteger(context: FloatContext, a: Num): Num {
  if (a.kind !== "finite" || a.exponent >= 0) return a;
  // Below one half, the sticky bit is all that is left of the operand.
  const isSmall = -a.exponent > bitLength(a.significand) + 1;
  const rounded = isSmall
    ? shiftRounded(1n, 2, a.sign, context.rounding)
    : shiftRounded(a.significand, -a.exponent, a.sign, context.rounding);
  if (rounded.inexact) context.flags |= PE;
  context.roundedUp = rounded.up;
  return rounded.value === 0n ? zero(a.sign) : num("finite", a.sign, 0, rounded.value);
}

/** As a signed integer of `bits`; undefined (with IE, and nothing else) when it has none: NaN, infinity, out of range. */
export function toInteger(context: FloatContext, a: Num, bits: number, rounding = context.rounding): bigint | undefined {
  if (a.kind === "zero") return 0n;
  if (a.kind === "finite" && a.exponent + bitLength(a.significand) <= bits + 1) {
    const before = { rounding: context.rounding, flags: context.flags };
    context.rounding = rounding;
    const whole = roundToInteger(context, a);
    context.rounding = before.rounding;
    const magnitude = whole.kind === "zero" ? 0n : whole.significand << BigInt(whole.exponent);
    const value = a.sign === 1 ? -magnitude : magnitude;
    const limit = 1n << BigInt(bits - 1);
    if (value >= -limit && value < limit) return value;
    context.flags = before.flags;
    context.roundedUp = false;
  }
  context.flags |= IE;
  return undefined;
}
