/**
 * Addition, subtraction, multiplication, division and square root of ordinary numbers with the host's own arithmetic, when
 * MXCSR asks for nothing unusual. What the fast path of the rows cannot tell is whether a result is exact: here error-free
 * transformations (Knuth's sum, Dekker's product) tell. Anything else is left to the exact path.
 */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";

/** Rounding to nearest, everything masked, no DAZ, no FTZ. The flags do not matter. */
const UNUSUAL = 0xffc0;
const USUAL = 0x1f80;
const PE = 0x20;

const MINIMUM_SINGLE = 2 ** -126;
const MAXIMUM_SINGLE = 3.4028234663852886e38;
const MINIMUM_DOUBLE = 2 ** -1022;
/** Between these Dekker's product neither overflows nor loses bits below the smallest number. */
const SMALL = 2 ** -450;
const LARGE = 2 ** 450;
const SPLITTER = 2 ** 27 + 1;

/** a * b - product, exactly. */
function productError(a: number, b: number, product: number): number {
  const aBig = SPLITTER * a;
  const aHigh = aBig - (aBig - a);
  const aLow = a - aHigh;
  const bBig = SPLITTER * b;
  const bHigh = bBig - (bBig - b);
  const bLow = b - bHigh;
  return aLow * bLow - (product - aHigh * bHigh - aLow * bHigh - aHigh * bLow);
}

/** a + b - sum, exactly, if nothing overflows. */
function sumError(a: number, b: number, sum: number): number {
  const rest = sum - a;
  return a - (sum - rest) + (b - rest);
}

/** Zero, or so far from the limits that no step below leaves the range. */
function isModerate(x: number): boolean {
  const magnitude = Math.abs(x);
  return x === 0 || (magnitude > SMALL && magnitude < LARGE);
}

/** What `doubles` and `singles` found: the result, or that they do not know. */
let result = 0;
let isInexact = false;

/** operation: 0 add, 1 multiply, 2 subtract, 4 divide, 6 square root of b. */
function doubles(operation: number, a: number, b: number): boolean {
  if (!isModerate(b) || (operation !== 6 && !isModerate(a))) return false;
  switch (operation) {
    case 0:
    case 2: {
      const summand = operation === 0 ? b : -b;
      result = a + summand;
      isInexact = sumError(a, summand, result) !== 0;
      // Sums of moderate numbers are no smaller than the last bit of the smaller one, far above the denormals.
      return true;
    }
    case 1:
      result = a * b;
      isInexact = result !== 0 && productError(a, b, result) !== 0;
      return true;
    case 4:
      if (b === 0) return false;
      result = a / b;
      isInexact = result !== 0 && (result * b !== a || productError(result, b, a) !== 0);
      return Math.abs(result) > MINIMUM_DOUBLE || a === 0;
    case 6:
      if (b < 0) return false;
      result = Math.sqrt(b);
      isInexact = result !== 0 && (result * result !== b || productError(result, result, b) !== 0);
      return true;
    default:
      return false;
  }
}

function isOrdinarySingle(x: number): boolean {
  const magnitude = Math.abs(x);
  return x === 0 || (magnitude >= MINIMUM_SINGLE && magnitude <= MAXIMUM_SINGLE);
}

/** Operands are singles, computed in double: rounding twice gives the same as once for these five operations. */
function singles(operation: number, a: number, b: number): boolean {
  if (!isOrdinarySingle(b) || (operation !== 6 && !isOrdinarySingle(a))) return false;
  let wide: number;
  let error = 0;
  switch (operation) {
    case 0:
    case 2: {
      const summand = operation === 0 ? b : -b;
      wide = a + summand;
      error = sumError(a, summand, wide);
      break;
    }
    case 1:
      wide = a * b;
      break;
    case 4:
      if (b === 0) return false;
      wide = a / b;
      error = wide * b === a ? 0 : 1;
      break;
    case 6:
      if (b < 0) return false;
      wide = Math.sqrt(b);
      error = wide * wide === b ? 0 : 1;
      break;
    default:
      return false;
  }
  result = Math.fround(wide);
  isInexact = result !== wide || error !== 0;
  const magnitude = Math.abs(result);
  return wide === 0 || (magnitude > MINIMUM_SINGLE && magnitude <= MAXIMUM_SINGLE);
}

/** Computes the lanes of `destination` op `source` into `to` (bank offsets) and sets PE; false if it does not know them all. */
export function computeQuickly(
  cpu: Cpu,
  operation: number,
  bits: number,
  lanes: number,
  destination: number,
  source: number,
  to: number,
): boolean {
  if ((cpu.u32[state.mxcsr >> 2] & UNUSUAL) !== USUAL) return false;
  const { view } = cpu;
  let anyInexact = false;
  for (let lane = 0; lane < lanes; lane++) {
    if (bits === 64) {
      const at = lane * 8;
      if (!doubles(operation, view.getFloat64(destination + at, true), view.getFloat64(source + at, true))) return false;
      view.setFloat64(to + at, result, true);
    } else {
      const at = lane * 4;
      if (!singles(operation, view.getFloat32(destination + at, true), view.getFloat32(source + at, true))) return false;
      view.setFloat32(to + at, result, true);
    }
    anyInexact ||= isInexact;
  }
  if (anyInexact) cpu.u32[state.mxcsr >> 2] |= PE;
  return true;
}
