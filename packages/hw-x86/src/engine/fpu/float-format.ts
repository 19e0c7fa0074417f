/**
 * Binary floating point in software, for what WebAssembly cannot give: 80-bit extended precision, directed rounding, and exact
 * exception flags. A `Num` is an operand or a rounded result in any of the formats; significands are bigints, so every
 * operation is computed exactly (or with a sticky bit below anything that matters) and rounded once, by `round`.
 */

/** Exception flags in the bit order that the x87 status word and MXCSR share. */
export const IE = 1,
  DE = 2,
  ZE = 4,
  OE = 8,
  UE = 16,
  PE = 32;
/** Exceptions found before anything is computed: unmasked, they leave the destination alone. */
export const PRE_COMPUTATION = IE | DE | ZE;

/** Rounding modes as the control words encode them. */
export const NEAREST = 0,
  DOWN = 1,
  UP = 2,
  TO_ZERO = 3;

export type Sign = 0 | 1;

/** zero, finite, infinity, quiet and signalling NaN, and the encodings of the 80-bit format that no longer mean anything. */
export type Kind = "zero" | "finite" | "infinity" | "quiet" | "signalling" | "unsupported";

export interface Num {
  readonly kind: Kind;
  readonly sign: Sign;
  /** finite: value = significand * 2^exponent, significand > 0. */
  readonly exponent: number;
  /** NaN: the 64-bit significand of the 80-bit format, integer bit set. */
  readonly significand: bigint;
  /** Encoded with the exponent field 0, and not zero. */
  readonly denormal: boolean;
}

export interface FloatFormat {
  /** Bits of the significand, the integer bit included. */
  readonly precision: number;
  /** Exponents of the leading bit of the smallest and largest normal number. */
  readonly minExponent: number;
  readonly maxExponent: number;
  /** By how much the exponent of an unmasked over- or underflow is wrapped (x87 registers), 0: not at all. */
  readonly wrap: number;
}

export const HALF: FloatFormat = { precision: 11, minExponent: -14, maxExponent: 15, wrap: 0 };
export const SINGLE: FloatFormat = { precision: 24, minExponent: -126, maxExponent: 127, wrap: 0 };
export const DOUBLE: FloatFormat = { precision: 53, minExponent: -1022, maxExponent: 1023, wrap: 0 };
const extended = (precision: number): FloatFormat => ({ precision, minExponent: -16382, maxExponent: 16383, wrap: 24576 });
export const EXTENDED: FloatFormat = extended(64);
/** x87 registers by the precision-control field; 1 is reserved and behaves as the full precision. */
export const BY_PRECISION_CONTROL: readonly FloatFormat[] = [extended(24), EXTENDED, extended(53), EXTENDED];

/** Control and outcome of an operation. */
export class FloatContext {
  rounding = NEAREST;
  /** Exceptions that are not masked, as flag bits. */
  unmasked = 0;
  /** SSE only: tiny results become zero while underflow is masked. */
  flushToZero = false;
  /** SSE only: denormal operands count as zero. */
  denormalsAreZero = false;
  /** Exceptions raised since `reset`. */
  flags = 0;
  /** The last rounding went away from zero (C1). */
  roundedUp = false;

  reset(rounding: number, unmasked: number): void {
    this.rounding = rounding;
    this.unmasked = unmasked;
    this.flushToZero = false;
    this.denormalsAreZero = false;
    this.flags = 0;
    this.roundedUp = false;
  }
}

const INTEGER_BIT = 1n << 63n;
const QUIET_BIT = 1n << 62n;

export function num(kind: Kind, sign: Sign, exponent = 0, significand = 0n, denormal = false): Num {
  return { kind, sign, exponent, significand, denormal };
}
export const zero = (sign: Sign): Num => num("zero", sign);
export const infinity = (sign: Sign): Num => num("infinity", sign);
/** The real indefinite: what masked invalid operations give. */
export const DEFAULT_NAN: Num = num("quiet", 1, 0, INTEGER_BIT | QUIET_BIT);
export const isNan = (a: Num): boolean => a.kind === "quiet" || a.kind === "signalling";
export const quieted = (a: Num): Num => num("quiet", a.sign, 0, a.significand | QUIET_BIT);
export const negated = (a: Num): Num => ({ ...a, sign: a.sign === 0 ? 1 : 0 });

/** Number of bits of a non-negative bigint. */
export function bitLength(value: bigint): number {
  let bits = 0;
  let rest = value;
  while (rest > 0xffff_ffffn) {
    rest >>= 32n;
    bits += 32;
  }
  return bits + 32 - Math.clz32(Number(rest));
}

function nan(sign: Sign, significand: bigint): Num {
  return num((significand & QUIET_BIT) !== 0n ? "quiet" : "signalling", sign, 0, significand | INTEGER_BIT);
}

/** `bits`: 32 bits as a number of either sign. */
export function unpackHalf(bits: number): Num {
  const sign: Sign = bits >= 0x8000 ? 1 : 0;
  const field = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (field === 0x1f) return fraction === 0 ? infinity(sign) : nan(sign, BigInt(fraction) << 53n);
  if (field === 0) return fraction === 0 ? zero(sign) : num("finite", sign, -24, BigInt(fraction), true);
  return num("finite", sign, field - 25, BigInt(fraction | 0x400));
}

export function unpack32(bits: number): Num {
  const sign: Sign = bits < 0 || bits >= 0x8000_0000 ? 1 : 0;
  const field = (bits >>> 23) & 0xff;
  const fraction = bits & 0x7f_ffff;
  if (field === 0xff) return fraction === 0 ? infinity(sign) : nan(sign, BigInt(fraction) << 40n);
  if (field === 0) return fraction === 0 ? zero(sign) : num("finite", sign, -149, BigInt(fraction), true);
  return num("finite", sign, field - 150, BigInt(fraction | 0x80_0000));
}

export function unpack64(bits: bigint): Num {
  const sign: Sign = (bits >> 63n) & 1n ? 1 : 0;
  const field = Number((bits >> 52n) & 0x7ffn);
  const fraction = bits & 0xf_ffff_ffff_ffffn;
  if (field === 0x7ff) return fraction === 0n ? infinity(sign) : nan(sign, fraction << 11n);
  if (field === 0) return fraction === 0n ? zero(sign) : num("finite", sign, -1074, fraction, true);
  return num("finite", sign, field - 1075, fraction | 0x10_0000_0000_0000n);
}

/** `signExponent`: sign in bit 15, exponent field below; pseudo-denormals count as denormal numbers of their value. */
export function unpack80(signExponent: number, significand: bigint): Num {
  const sign: Sign = signExponent & 0x8000 ? 1 : 0;
  const field = signExponent & 0x7fff;
  const integerBit = (significand & INTEGER_BIT) !== 0n;
  if (field === 0) return significand === 0n ? zero(sign) : num("finite", sign, -16445, significand, true);
  if (!integerBit) return num("unsupported", sign, 0, significand);
  if (field === 0x7fff) return significand === INTEGER_BIT ? infinity(sign) : nan(sign, significand);
  return num("finite", sign, field - 16446, significand);
}

/** Bits of a rounded number in an interchange format whose exponent field is `fieldBits` wide and integer bit implied. */
function pack(a: Num, format: FloatFormat, fieldBits: number): bigint {
  const fractionBits = format.precision - 1;
  const shift = BigInt(fractionBits);
  const sign = BigInt(a.sign) << BigInt(fieldBits + fractionBits);
  const top = (1n << BigInt(fieldBits)) - 1n;
  switch (a.kind) {
    case "zero":
      return sign;
    case "infinity":
      return sign | (top << shift);
    case "finite": {
      const exponent = a.exponent + bitLength(a.significand) - 1;
      const isNormal = exponent >= format.minExponent;
      const lsb = (isNormal ? exponent : format.minExponent) - fractionBits;
      const significand = align(a, lsb);
      const fraction = significand & ((1n << shift) - 1n);
      return sign | (BigInt(isNormal ? exponent - format.minExponent + 1 : 0) << shift) | fraction;
    }
    default:
      return sign | (top << shift) | ((a.significand & (INTEGER_BIT - 1n)) >> BigInt(63 - fractionBits));
  }
}

/** Significand with `lsb` as the exponent of its lowest bit; the bits shifted out are zero in a rounded number. */
function align(a: Num, lsb: number): bigint {
  const shift = a.exponent - lsb;
  return shift >= 0 ? a.significand << BigInt(shift) : a.significand >> BigInt(-shift);
}

/** Of a number rounded to SINGLE: its 32 bits, unsigned. */
export const pack32 = (a: Num): number => Number(pack(a, SINGLE, 8));
/** Of a number rounded to HALF. */
export const packHalf = (a: Num): number => Number(pack(a, HALF, 5));
/** Of a number rounded to DOUBLE. */
export const pack64 = (a: Num): bigint => pack(a, DOUBLE, 11);

export interface Packed80 {
  readonly signExponent: number;
  readonly significand: bigint;
}

/** Of a number rounded to an x87 register's format, wrapped exponents included. */
export function pack80(a: Num): Packed80 {
  const sign = a.sign << 15;
  switch (a.kind) {
    case "zero":
      return { signExponent: sign, significand: 0n };
    case "infinity":
      return { signExponent: sign | 0x7fff, significand: INTEGER_BIT };
    case "finite": {
      const exponent = a.exponent + bitLength(a.significand) - 1;
      if (exponent < -16382) return { signExponent: sign, significand: align(a, -16445) };
      return { signExponent: sign | ((exponent + 16383) & 0x7fff), significand: align(a, exponent - 63) };
    }
    default:
      return { signExponent: sign | 0x7fff, significand: a.significand };
  }
}

/** significand shifted right by `shift` (left when negative) and rounded; `up` says that it grew in magnitude. */
export function shiftRounded(
  significand: bigint,
  shift: number,
  sign: Sign,
  rounding: number,
): { value: bigint; inexact: boolean; up: boolean } {
  if (shift <= 0) return { value: significand << BigInt(-shift), inexact: false, up: false };
  const count = BigInt(shift);
  const value = significand >> count;
  const rest = significand - (value << count);
  if (rest === 0n) return { value, inexact: false, up: false };
  const half = 1n << (count - 1n);
  let up = false;
  if (rounding === NEAREST) up = rest > half || (rest === half && (value & 1n) === 1n);
  else if (rounding === DOWN) up = sign === 1;
  else if (rounding === UP) up = sign === 0;
  return { value: up ? value + 1n : value, inexact: true, up };
}

/**
 * The number (-1)^sign * significand * 2^exponent in `format`: the one place where rounding, overflow and underflow happen.
 * Tininess is detected after rounding. A caller with an inexact significand passes extra low bits, the last one sticky.
 */
export function round(context: FloatContext, format: FloatFormat, sign: Sign, exponent: number, significand: bigint): Num {
  const length = bitLength(significand);
  const top = exponent + length - 1;
  const normal = shiftRounded(significand, length - format.precision, sign, context.rounding);
  const normalExponent = exponent + length - format.precision;
  const roundedTop = normalExponent + bitLength(normal.value) - 1;
  if (roundedTop > format.maxExponent) return overflow(context, format, sign, normal, normalExponent);
  if (top >= format.minExponent) return deliver(context, sign, normalExponent, normal);

  const isTiny = roundedTop < format.minExponent;
  if (isTiny && (context.unmasked & UE) !== 0) {
    context.flags |= UE;
    if (format.wrap !== 0 && roundedTop + format.wrap < format.minExponent) return massive(context, zero(sign));
    return deliver(context, sign, normalExponent + format.wrap, normal);
  }
  if (isTiny && context.flushToZero) {
    context.flags |= UE | PE;
    context.roundedUp = false;
    return zero(sign);
  }
  const lsb = format.minExponent - format.precision + 1;
  const denormal = shiftRounded(significand, lsb - exponent, sign, context.rounding);
  if (isTiny && denormal.inexact) context.flags |= UE;
  return deliver(context, sign, lsb, denormal);
}

interface Rounded {
  value: bigint;
  inexact: boolean;
  up: boolean;
}

function deliver(context: FloatContext, sign: Sign, exponent: number, rounded: Rounded): Num {
  if (rounded.inexact) context.flags |= PE;
  context.roundedUp = rounded.up;
  return rounded.value === 0n ? zero(sign) : num("finite", sign, exponent, rounded.value);
}

function overflow(context: FloatContext, format: FloatFormat, sign: Sign, rounded: Rounded, exponent: number): Num {
  context.flags |= OE;
  if ((context.unmasked & OE) !== 0) {
    const top = exponent + bitLength(rounded.value) - 1;
    if (format.wrap !== 0 && top - format.wrap > format.maxExponent) return massive(context, infinity(sign));
    return deliver(context, sign, exponent - format.wrap, rounded);
  }
  context.flags |= PE;
  const towardZero =
    context.rounding === TO_ZERO || (context.rounding === DOWN && sign === 0) || (context.rounding === UP && sign === 1);
  context.roundedUp = !towardZero;
  if (!towardZero) return infinity(sign);
  const ones = (1n << BigInt(format.precision)) - 1n;
  return num("finite", sign, format.maxExponent - format.precision + 1, ones);
}

/** An unmasked over- or underflow that even the wrapped exponent cannot express (FSCALE). */
function massive(context: FloatContext, result: Num): Num {
  context.flags |= PE;
  context.roundedUp = result.kind === "infinity";
  return result;
}
