/** Helpers of the x87's transcendental, remainder and scaling instructions: special operands and the order of exceptions. */
import type { Cpu } from "../cpu.ts";
import type { HelperTable } from "../helpers.ts";
import { doesBehave, VendorBehaviour } from "../vendor-behaviour.ts";
import { divide, fromInteger, x87Nan } from "./float-arithmetic.ts";
import {
  bitLength,
  DE,
  DEFAULT_NAN,
  EXTENDED,
  IE,
  infinity,
  isNan,
  type Num,
  num,
  PE,
  round,
  type Sign,
  UE,
  ZE,
  zero,
} from "./float-format.ts";
import {
  arctangent,
  exponentialMinusOne,
  logarithm2,
  logarithmOnePlus,
  quartersOfPi,
  type Scaled,
  sineCosine,
  tangent,
  yLogarithm,
} from "./transcendental.ts";
import { begin, x87Context as context, specialOperand, unary } from "./x87-arithmetic.ts";
import {
  C0,
  C1,
  C2,
  C3,
  isEmpty,
  noteInstruction,
  pop,
  push,
  pushOver,
  readRegister,
  setC1,
  setCodes,
  setStatus,
  settle,
  stackFault,
  status,
  writeRegister,
} from "./x87-state.ts";

const ONE = fromInteger(1n);

const finish = (a: Scaled): Num => round(context, EXTENDED, a.sign, a.exponent, a.significand);

function invalid(): Num {
  context.flags |= IE;
  return DEFAULT_NAN;
}

/** An operand so small that the function is the operand itself, less than an ulp off on the side of `larger`. */
function nearly(a: Num, larger: boolean): Num {
  const wide = (a.significand << 80n) + (larger ? 1n : -1n);
  return round(context, EXTENDED, a.sign, a.exponent - 80, wide);
}
/** Exponent of the leading bit. */
const magnitude = (a: Num): number => a.exponent + bitLength(a.significand) - 1;

function exponential(a: Num): Num {
  const special = specialOperand(a);
  if (special !== undefined) return special;
  if (a.kind === "zero") return a;
  if (a.kind === "infinity") return a.sign === 1 ? num("finite", 1, 0, 1n) : a;
  // Outside -1 to 1 the result is undefined; what is deterministic is the operand itself.
  context.flags |= PE;
  if (magnitude(a) > 0) return a;
  if (a.exponent + bitLength(a.significand) === 1 && (a.significand & (a.significand - 1n)) === 0n) {
    return a.sign === 1 ? num("finite", 1, -1, 1n) : ONE;
  }
  return finish(exponentialMinusOne(a));
}

/** ST(1) = operation(ST(0), ST(1)), then pop. */
function binaryPop(cpu: Cpu, operation: (x: Num, y: Num) => Num): void {
  noteInstruction(cpu);
  setC1(cpu, false);
  if (isEmpty(cpu, 0) || isEmpty(cpu, 1)) {
    if (!stackFault(cpu, false)) return;
    writeRegister(cpu, 1, DEFAULT_NAN);
  } else {
    begin(cpu);
    const result = operation(readRegister(cpu, 0), readRegister(cpu, 1));
    if (!settle(cpu, context)) return;
    writeRegister(cpu, 1, result);
  }
  pop(cpu);
}

/** NaNs and invalid encodings of two operands; otherwise undefined. */
function specialPair(x: Num, y: Num): Num | undefined {
  if (x.kind === "unsupported" || y.kind === "unsupported") return invalid();
  if (!isNan(x) && !isNan(y)) return undefined;
  if (x.kind === "signalling" || y.kind === "signalling") context.flags |= IE;
  return x87Nan(x, y);
}
function noteDenormals(x: Num, y: Num): void {
  if (x.denormal || y.denormal) context.flags |= DE;
}
const product = (x: Sign, y: Sign): Sign => (x === y ? 0 : 1);

function logarithmTimes(x: Num, y: Num): Num {
  const special = specialPair(x, y);
  if (special !== undefined) return special;
  if (x.kind === "zero") {
    if (y.kind === "zero") return invalid();
    if (y.kind === "infinity") return infinity(product(1, y.sign));
    context.flags |= ZE;
    return infinity(product(1, y.sign));
  }
  if (x.sign === 1) return invalid();
  if (x.kind === "infinity") {
    if (y.kind === "zero") return invalid();
    noteDenormals(x, y);
    return infinity(y.sign);
  }
  const logarithm = logarithm2(x);
  const logarithmSign: Sign = "exact" in logarithm ? (logarithm.exact < 0 ? 1 : 0) : logarithm.value.sign;
  const isOne = "exact" in logarithm && logarithm.exact === 0;
  if (y.kind === "infinity") {
    if (isOne) return invalid();
    noteDenormals(x, y);
    return infinity(product(y.sign, logarithmSign));
  }
  noteDenormals(x, y);
  if (y.kind === "zero" || isOne) return zero(product(y.sign, logarithmSign));
  if ("exact" in logarithm) {
    const factor = BigInt(Math.abs(logarithm.exact));
    const result = round(context, EXTENDED, product(y.sign, logarithmSign), y.exponent, y.significand * factor);
    // Silicon calls every logarithm but that of 1 inexact, and so every tiny result an underflow.
    const isTiny = result.kind === "zero" || (result.kind === "finite" && magnitude(result) < EXTENDED.minExponent);
    context.flags |= isTiny ? PE | UE : PE;
    return result;
  }
  return finish(yLogarithm(y, logarithm.value));
}

function logarithmOnePlusTimes(x: Num, y: Num): Num {
  const special = specialPair(x, y);
  if (special !== undefined) return special;
  const sign = product(x.sign, y.sign);
  if (x.kind === "zero") {
    if (y.kind === "infinity") return invalid();
    noteDenormals(x, y);
    return zero(sign);
  }
  if (x.kind === "infinity") {
    if (x.sign === 1 || y.kind === "zero") return invalid();
    noteDenormals(x, y);
    return infinity(y.sign);
  }
  // At -1 and below there is no logarithm; the manual leaves all but |x| <= 1 - sqrt(1/2) undefined.
  if (x.sign === 1 && magnitude(x) >= 0) return invalid();
  noteDenormals(x, y);
  if (y.kind === "infinity") return infinity(sign);
  if (y.kind === "zero") return zero(sign);
  return finish(yLogarithm(y, logarithmOnePlus(x)));
}

function arctangentOf(x: Num, y: Num): Num {
  const special = specialPair(x, y);
  if (special !== undefined) return special;
  noteDenormals(x, y);
  if (y.kind === "infinity") {
    const quarters = x.kind === "infinity" ? (x.sign === 1 ? 3 : 1) : 2;
    return finish(quartersOfPi(quarters, y.sign));
  }
  if (y.kind === "zero" || x.kind === "infinity") {
    return x.sign === 1 ? finish(quartersOfPi(4, y.sign)) : zero(y.sign);
  }
  if (x.kind === "zero") return finish(quartersOfPi(2, y.sign));
  // A quotient that is exact and so small that it underflows is still inexact as an angle; divide says the rest.
  if (x.sign === 0 && magnitude(y) - magnitude(x) < -100) {
    const quotient = divide(context, { ...EXTENDED, precision: 120, minExponent: -40000 }, x87Nan, y, x);
    return quotient.kind === "finite" ? nearly(quotient, false) : quotient;
  }
  return finish(arctangent(y, x));
}

const TWO_63 = 63;

/** FSIN, FCOS, FPTAN, FSINCOS: `results` computes what replaces ST(0) and what is pushed after. */
function trigonometric(cpu: Cpu, results: (a: Num) => [Num, Num?], pushes: boolean): void {
  noteInstruction(cpu);
  setStatus(cpu, status(cpu) & ~(C1 | C2));
  if (isEmpty(cpu, 0) || (pushes && !isEmpty(cpu, 7))) {
    const isOverflow = !isEmpty(cpu, 0);
    if (!stackFault(cpu, isOverflow)) return;
    writeRegister(cpu, 0, DEFAULT_NAN);
    if (pushes) pushOver(cpu, DEFAULT_NAN);
    return;
  }
  const a = readRegister(cpu, 0);
  if (a.kind === "finite" && magnitude(a) >= TWO_63) {
    setStatus(cpu, status(cpu) | C2);
    return;
  }
  begin(cpu);
  const special = specialOperand(a) ?? (a.kind === "infinity" ? invalid() : undefined);
  const [first, second] = special !== undefined ? [special, special] : results(a);
  if (!settle(cpu, context)) return;
  writeRegister(cpu, 0, first);
  if (pushes && second !== undefined) push(cpu, second);
}

/** Whether sine and tangent are the angle itself and cosine 1 on this processor, inexact, and whatever the rounding. */
function isItself(cpu: Cpu, a: Num): boolean {
  return magnitude(a) < ITSELF && doesBehave(cpu, VendorBehaviour.tinyAnglesAreNotRounded);
}
/** The angle, as inexact as what it stands for. */
function itself(a: Num): Num {
  const result = round(context, EXTENDED, a.sign, a.exponent, a.significand);
  context.flags |= magnitude(a) < EXTENDED.minExponent ? PE | UE : PE;
  return result;
}
const ITSELF = -68;

function sine(cpu: Cpu, a: Num): Num {
  if (a.kind === "zero") return a;
  if (isItself(cpu, a)) return itself(a);
  if (magnitude(a) < -70) return nearly(a, false);
  return finish(sineCosine(a).sine);
}
function cosine(cpu: Cpu, a: Num): Num {
  if (a.kind === "zero") return ONE;
  if (isItself(cpu, a)) {
    context.flags |= PE;
    return ONE;
  }
  if (magnitude(a) < -70) return nearly(ONE, false);
  return finish(sineCosine(a).cosine);
}
function tangentOf(cpu: Cpu, a: Num): Num {
  if (a.kind === "zero") return a;
  if (isItself(cpu, a)) return itself(a);
  if (magnitude(a) < -70) return nearly(a, true);
  return finish(tangent(a));
}

/** FPREM (quotient truncated) and FPREM1 (quotient rounded to nearest even): ST(0) by ST(1). */
function remainder(cpu: Cpu, toNearest: boolean): void {
  noteInstruction(cpu);
  setStatus(cpu, status(cpu) & ~(C1 | C2));
  if (isEmpty(cpu, 0) || isEmpty(cpu, 1)) {
    if (!stackFault(cpu, false)) return;
    writeRegister(cpu, 0, DEFAULT_NAN);
    return;
  }
  begin(cpu);
  const a = readRegister(cpu, 0);
  const b = readRegister(cpu, 1);
  let quotient = 0n;
  let isPartial = false;
  let hasQuotient = false;
  let result = specialPair(a, b);
  if (result === undefined && (a.kind === "infinity" || b.kind === "zero")) result = invalid();
  if (result === undefined) {
    noteDenormals(a, b);
    hasQuotient = true;
    if (a.kind === "zero" || b.kind === "infinity") result = a;
    else {
      const distance = magnitude(a) - magnitude(b);
      isPartial = distance >= 64;
      // The processor's choice of how far one step reduces: 32 to 63 bits.
      const scale = isPartial ? distance - ((distance & 31) | 32) : 0;
      const low = Math.min(a.exponent, b.exponent + scale);
      const x = a.significand << BigInt(a.exponent - low);
      const y = b.significand << BigInt(b.exponent + scale - low);
      quotient = x / y;
      let rest = x - quotient * y;
      let sign = a.sign;
      if (toNearest && !isPartial && (2n * rest > y || (2n * rest === y && (quotient & 1n) === 1n))) {
        quotient += 1n;
        rest = y - rest;
        sign = sign === 0 ? 1 : 0;
      }
      result = rest === 0n ? zero(a.sign) : round(context, EXTENDED, sign, low, rest);
    }
  }
  if (!settle(cpu, context)) return;
  // Without a quotient C0 and C3 stay what they were.
  if (hasQuotient && isPartial) setCodes(cpu, C2);
  else if (hasQuotient) {
    const low = Number(quotient & 7n);
    setCodes(cpu, (low & 4 ? C0 : 0) | (low & 2 ? C3 : 0));
    setC1(cpu, (low & 1) !== 0);
  }
  writeRegister(cpu, 0, result);
}

function scale(a: Num, b: Num): Num {
  const special = specialPair(a, b);
  if (special !== undefined) return special;
  if (b.kind === "infinity") {
    if (b.sign === 0 ? a.kind === "zero" : a.kind === "infinity") return invalid();
    noteDenormals(a, b);
    return b.sign === 0 ? infinity(a.sign) : zero(a.sign);
  }
  noteDenormals(a, b);
  if (a.kind !== "finite" || b.kind === "zero") {
    return a.kind === "finite" ? round(context, EXTENDED, a.sign, a.exponent, a.significand) : a;
  }
  const whole = b.exponent >= 0 ? b.significand << BigInt(Math.min(b.exponent, 64)) : b.significand >> BigInt(-b.exponent);
  const by = Number(whole > 0xffffn ? 0xffffn : whole);
  return round(context, EXTENDED, a.sign, a.exponent + (b.sign === 1 ? -by : by), a.significand);
}

export const x87Transcendental: HelperTable = {
  fpuExponential: (cpu) => unary(cpu, exponential),
  fpuLogarithm: (cpu) => binaryPop(cpu, logarithmTimes),
  fpuLogarithmOnePlus: (cpu) => binaryPop(cpu, logarithmOnePlusTimes),
  fpuArctangent: (cpu) => binaryPop(cpu, arctangentOf),
  fpuSine: (cpu) => trigonometric(cpu, (a) => [sine(cpu, a)], false),
  fpuCosine: (cpu) => trigonometric(cpu, (a) => [cosine(cpu, a)], false),
  fpuSineCosine: (cpu) => trigonometric(cpu, (a) => [sine(cpu, a), cosine(cpu, a)], true),
  fpuTangent: (cpu) => trigonometric(cpu, (a) => [tangentOf(cpu, a), ONE], true),
  /** a: 1 for FPREM1. */
  fpuRemainder: (cpu, toNearest) => remainder(cpu, toNearest !== 0),
  fpuScale(cpu) {
    noteInstruction(cpu);
    setC1(cpu, false);
    if (isEmpty(cpu, 0) || isEmpty(cpu, 1)) {
      if (stackFault(cpu, false)) writeRegister(cpu, 0, DEFAULT_NAN);
      return;
    }
    begin(cpu);
    const result = scale(readRegister(cpu, 0), readRegister(cpu, 1));
    if (settle(cpu, context)) writeRegister(cpu, 0, result);
  },
  fpuExtract(cpu) {
    noteInstruction(cpu);
    setC1(cpu, false);
    if (isEmpty(cpu, 0) || !isEmpty(cpu, 7)) {
      if (!stackFault(cpu, !isEmpty(cpu, 0))) return;
      writeRegister(cpu, 0, DEFAULT_NAN);
      pushOver(cpu, DEFAULT_NAN);
      return;
    }
    begin(cpu);
    const a = readRegister(cpu, 0);
    const special = specialOperand(a);
    let exponent = special ?? a;
    let significand = exponent;
    if (special === undefined) {
      if (a.kind === "zero") {
        context.flags |= ZE;
        exponent = infinity(1);
      } else if (a.kind === "infinity") {
        exponent = infinity(0);
      } else {
        exponent = fromInteger(BigInt(magnitude(a)));
        significand = num("finite", a.sign, -(bitLength(a.significand) - 1), a.significand);
      }
    }
    if (!settle(cpu, context)) return;
    writeRegister(cpu, 0, exponent);
    push(cpu, significand);
  },
};
