/**
 * The transcendental functions of the x87, in fixed-point bigint arithmetic with far more bits than a register has, so that the
 * rounded result is within one unit in the last place, monotonic, and the same on every host.
 *
 * Each takes and gives `Scaled` numbers: sign, exponent and significand, value = significand * 2^exponent, not yet rounded.
 * Arguments of sine, cosine and tangent are reduced with the 66-bit pi that Intel documents for its processors.
 */

import { integerSquareRoot } from "./float-arithmetic.ts";
import { bitLength, type Num, num, type Sign } from "./float-format.ts";

export interface Scaled {
  readonly sign: Sign;
  readonly exponent: number;
  readonly significand: bigint;
}

/** Fraction bits of fixed-point series. */
const BITS = 160n;
const ONE = 1n << BITS;
/** Significant bits kept in floating intermediate values. */
const KEEP = 160;

/** pi / 2 as the processor's argument reduction has it: 66 bits of pi, in units of 2^-67. */
const HALF_PI_66 = 0xc90f_daa2_2168_c234_cn;
const HALF_PI_66_EXPONENT = -67;

/** 1/n! and similar need no table: terms are derived from each other. ln 2 = 2 atanh(1/3). */
const LN2 = 2n * atanhSeries(ONE / 3n);
/** Machin: pi/4 = 4 atan(1/5) - atan(1/239). */
const PI = 4n * (4n * atanSeries(ONE / 5n) - atanSeries(ONE / 239n));

function multiplyFixed(a: bigint, b: bigint): bigint {
  return (a * b) >> BITS;
}

function atanhSeries(x: bigint): bigint {
  return multiplyFixed(x, oddSeries(multiplyFixed(x, x), false));
}
function atanSeries(x: bigint): bigint {
  return multiplyFixed(x, oddSeries(multiplyFixed(x, x), true));
}
/** 1 + z/3 + z^2/5 + ... with z = x^2, or with alternating signs. */
function oddSeries(z: bigint, alternating: boolean): bigint {
  let sum = ONE;
  let power = z;
  for (let n = 3n; power !== 0n; n += 2n) {
    sum += (alternating && (n & 2n) !== 0n ? -power : power) / n;
    power = multiplyFixed(power, z);
  }
  return sum;
}

const positive = (exponent: number, significand: bigint): Scaled => ({ sign: 0, exponent, significand });

/** Cut to KEEP significant bits. */
function trim(a: Scaled): Scaled {
  const excess = bitLength(a.significand) - KEEP;
  if (excess <= 0) return a;
  return { sign: a.sign, exponent: a.exponent + excess, significand: a.significand >> BigInt(excess) };
}

function times(a: Scaled, b: Scaled): Scaled {
  return trim({
    sign: a.sign === b.sign ? 0 : 1,
    exponent: a.exponent + b.exponent,
    significand: a.significand * b.significand,
  });
}

function over(a: Scaled, b: Scaled): Scaled {
  const shift = Math.max(0, KEEP + bitLength(b.significand) - bitLength(a.significand));
  return {
    sign: a.sign === b.sign ? 0 : 1,
    exponent: a.exponent - b.exponent - shift,
    significand: (a.significand << BigInt(shift)) / b.significand,
  };
}

/** Magnitude as fixed-point with BITS fraction bits, cut. */
function fixed(a: Scaled): bigint {
  const shift = BigInt(a.exponent) + BITS;
  return shift >= 0n ? a.significand << shift : a.significand >> -shift;
}
const fromFixed = (sign: Sign, value: bigint): Scaled => ({ sign, exponent: Number(-BITS), significand: value });

/** Never exact: one more bit that is set, so that rounding sees an inexact number. */
export function inexact(a: Scaled): Scaled {
  return { sign: a.sign, exponent: a.exponent - 1, significand: (a.significand << 1n) | 1n };
}

const scaled = (a: Num): Scaled => ({ sign: a.sign, exponent: a.exponent, significand: a.significand });

/** 2^x - 1 for |x| <= 1, x finite and not zero. */
export function exponentialMinusOne(x: Num): Scaled {
  const z = times(scaled(x), fromFixed(0, LN2));
  const argument = z.sign === 1 ? -fixed(z) : fixed(z);
  // (e^z - 1) / z = 1 + z/2! + z^2/3! + ...
  let sum = ONE;
  let term = ONE;
  for (let n = 2n; term !== 0n; n++) {
    term = (term * argument) / (n << BITS);
    sum += term;
  }
  // Where z is too small for the series to show, the result still lies off z on its known side.
  if (argument === 0n || argument === -1n) sum += z.sign === 1 ? -1n : 1n;
  return inexact(times(z, fromFixed(0, sum)));
}

/** log2 of 1 + s' where s = s'/(2 + s') : 2 atanh(s) / ln 2. */
function log2FromRatio(s: Scaled): Scaled {
  const magnitude = fixed(s);
  const series = oddSeries(multiplyFixed(magnitude, magnitude), false);
  const logarithm = times({ ...s, exponent: s.exponent + 1 }, fromFixed(0, series));
  return over(logarithm, fromFixed(0, LN2));
}

/** log2(x) for finite x > 0; undefined when it is exactly the integer `exact`. */
export function logarithm2(x: Num): { exact: number } | { value: Scaled } {
  const length = bitLength(x.significand);
  // x = m * 2^k with m in [0.75, 1.5)
  let k = x.exponent + length - 1;
  const aboveThreeHalves = x.significand << 1n >= 3n << BigInt(length - 1);
  if (aboveThreeHalves) k++;
  const oneAt = BigInt(k - x.exponent);
  const denominator = oneAt >= 0n ? 1n << oneAt : 1n;
  const difference = x.significand - denominator;
  if (difference === 0n) return { exact: k };
  const sign: Sign = difference < 0n ? 1 : 0;
  const s = over(positive(0, difference < 0n ? -difference : difference), positive(0, x.significand + denominator));
  const fraction = log2FromRatio({ ...s, sign });
  if (k === 0) return { value: fraction };
  const sum = (BigInt(k) << BITS) + (sign === 1 ? -fixed(fraction) : fixed(fraction));
  return { value: fromFixed(sum < 0n ? 1 : 0, sum < 0n ? -sum : sum) };
}

/** y * log2(x), x > 0 finite, y finite and not zero, log2(x) not an integer. */
export function yLogarithm(y: Num, logarithm: Scaled): Scaled {
  return inexact(times(scaled(y), logarithm));
}

/** log2(1 + x) for x > -1, finite and not zero. */
export function logarithmOnePlus(x: Num): Scaled {
  const a = scaled(x);
  const top = a.exponent + bitLength(a.significand);
  if (top >= -1) {
    // Far from zero nothing cancels, and the series below would not converge.
    const low = Math.min(a.exponent, 0);
    const one = 1n << BigInt(-low);
    const magnitude = a.significand << BigInt(a.exponent - low);
    const sum = a.sign === 1 ? one - magnitude : one + magnitude;
    const logarithm = logarithm2(num("finite", 0, low, sum));
    if ("value" in logarithm) return logarithm.value;
    const exact = logarithm.exact;
    return fromFixed(exact < 0 ? 1 : 0, BigInt(Math.abs(exact)) << BITS);
  }
  // 2 + x exactly, in units of the smaller exponent; beyond 400 bits x does not matter to it.
  let denominator: Scaled;
  if (a.exponent < -400) denominator = positive(1, 1n);
  else {
    const two = 1n << BigInt(1 - a.exponent);
    denominator = positive(a.exponent, a.sign === 1 ? two - a.significand : two + a.significand);
  }
  return log2FromRatio(over(a, denominator));
}

/** arctan(y / x) in the right quadrant, both finite and not zero. */
export function arctangent(y: Num, x: Num): Scaled {
  const a = positive(y.exponent, y.significand);
  const b = positive(x.exponent, x.significand);
  const isSteep = compareMagnitude(a, b) > 0;
  let angle = arctangentOfRatio(isSteep ? over(b, a) : over(a, b));
  if (isSteep) angle = fromFixed(0, PI / 2n - fixed(angle));
  if (x.sign === 1) angle = fromFixed(0, PI - fixed(angle));
  return inexact({ ...angle, sign: y.sign });
}

/** Exact multiples of pi for FPATAN's special operands: `numerator` quarters of pi. */
export function quartersOfPi(numerator: number, sign: Sign): Scaled {
  return inexact(fromFixed(sign, (PI * BigInt(numerator)) / 4n));
}

function compareMagnitude(a: Scaled, b: Scaled): number {
  const difference = a.exponent + bitLength(a.significand) - b.exponent - bitLength(b.significand);
  if (difference !== 0) return difference;
  const low = Math.min(a.exponent, b.exponent);
  const x = a.significand << BigInt(a.exponent - low);
  const y = b.significand << BigInt(b.exponent - low);
  return x < y ? -1 : x > y ? 1 : 0;
}

function arctangentOfRatio(ratio: Scaled): Scaled {
  let q = ratio;
  let doublings = 0;
  // tan(angle / 2) = q / (1 + sqrt(1 + q^2)), until the series converges fast.
  while (q.exponent + bitLength(q.significand) > -3) {
    const square = fixed(times(q, q));
    const root = integerSquareRoot((ONE + square) << BITS);
    q = over(q, fromFixed(0, ONE + root));
    doublings++;
  }
  const magnitude = fixed(q);
  let series = oddSeries(multiplyFixed(magnitude, magnitude), true);
  if (series === ONE) series -= 1n;
  const angle = times(q, fromFixed(0, series));
  return { ...angle, exponent: angle.exponent + doublings };
}

/** x = quadrant * pi/2 + rest, |rest| <= pi/4, with the processor's pi. */
function reduce(x: Num): { quadrant: number; rest: Scaled } {
  const low = Math.min(x.exponent, HALF_PI_66_EXPONENT);
  const top = x.exponent + bitLength(x.significand);
  if (top <= -1) return { quadrant: 0, rest: positive(x.exponent, x.significand) };
  const value = x.significand << BigInt(x.exponent - low);
  const half = HALF_PI_66 << BigInt(HALF_PI_66_EXPONENT - low);
  const quotient = (2n * value + half) / (2n * half);
  const rest = value - quotient * half;
  return {
    quadrant: Number(quotient & 3n),
    rest: { sign: rest < 0n ? 1 : 0, exponent: low, significand: rest < 0n ? -rest : rest },
  };
}

/** sin(rest) and cos(rest) of a reduced argument, rest not zero. */
function sineOfRest(rest: Scaled): Scaled {
  const magnitude = fixed(rest);
  const z = multiplyFixed(magnitude, magnitude);
  let sum = ONE;
  let term = ONE;
  for (let n = 2n; term !== 0n; n += 2n) {
    term = -(multiplyFixed(term, z) / (n * (n + 1n)));
    sum += term;
  }
  if (sum === ONE) sum -= 1n;
  return times(rest, fromFixed(0, sum));
}
function cosineOfRest(rest: Scaled): Scaled {
  const magnitude = fixed(rest);
  const z = multiplyFixed(magnitude, magnitude);
  let sum = ONE;
  let term = ONE;
  for (let n = 1n; term !== 0n; n += 2n) {
    term = -(multiplyFixed(term, z) / (n * (n + 1n)));
    sum += term;
  }
  if (sum === ONE) sum -= 1n;
  return fromFixed(0, sum);
}

const withSign = (a: Scaled, flip: boolean): Scaled => (flip ? { ...a, sign: a.sign === 0 ? 1 : 0 } : a);

/** sin(x) and cos(x) for finite x that is not zero, |x| < 2^63. */
export function sineCosine(x: Num): { sine: Scaled; cosine: Scaled } {
  const { quadrant, rest } = reduce(x);
  if (rest.significand === 0n) throw new RangeError("argument is a multiple of pi");
  const s = sineOfRest(rest);
  const c = cosineOfRest(rest);
  const sine = [s, c, withSign(s, true), withSign(c, true)][quadrant];
  const cosine = [c, withSign(s, true), withSign(c, true), s][quadrant];
  return { sine: inexact(withSign(sine, x.sign === 1)), cosine: inexact(cosine) };
}

export function tangent(x: Num): Scaled {
  const { sine, cosine } = sineCosine(x);
  return inexact(over(sine, cosine));
}
