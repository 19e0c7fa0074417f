/**
 * The exact path of SSE and SSE2 floating point: whatever the rows' WebAssembly fast path does not vouch for. Operands travel in
 * 16-byte slots of `state.helper`: destination, source, result. A helper sets MXCSR's sticky flags and raises #XM (or #UD
 * without CR4.OSXMMEXCPT) with the destination unchanged.
 */
import type { Cpu } from "../cpu.ts";
import { RDI, state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { op } from "../operation.ts";
import {
  add,
  compare,
  convert,
  divide,
  fromInteger,
  multiply,
  multiplyAdd,
  order,
  roundToInteger,
  squareRoot,
  sseNan,
  subtract,
  toInteger,
} from "./float-arithmetic.ts";
import {
  DOUBLE,
  FloatContext,
  type FloatFormat,
  HALF,
  IE,
  isNan,
  type Num,
  PE,
  PRE_COMPUTATION,
  pack32,
  pack64,
  packHalf,
  round,
  SINGLE,
  TO_ZERO,
  unpack32,
  unpack64,
  unpackHalf,
  zero,
} from "./float-format.ts";
import { operandSegment } from "./x87-state.ts";

/** Slots of `state.helper`, as bank offsets. */
export const DESTINATION = state.helper;
export const SOURCE_VECTOR = state.helper + 16;
export const RESULT = state.helper + 32;
export const ADDEND = state.helper + 48;

export const SSE_OPERATION = {
  add: 0,
  multiply: 1,
  subtract: 2,
  minimum: 3,
  divide: 4,
  maximum: 5,
  squareRoot: 6,
  compare: 7,
} as const;

/**
 * Comparison predicates, a bit for each (Intel SDM Vol. 2A, CMPPD - Compare Packed Double Precision Floating-Point Values). The first
 * 16 say which of the four orderings they hold for, and the next 16 say the same; quiet NaNs signal for half of them.
 */
export const PREDICATES = {
  less: 0b1001_0110_1001_0110,
  equal: 0b1010_0101_1010_0101,
  greater: 0b1111_0000_1111_0000,
  unordered: 0b1000_0111_0111_1000,
  signals: 0b1001_1001_1001_1001_0110_0110_0110_0110,
} as const;

/** MXCSR. */
const DAZ = 0x40,
  FTZ = 0x8000;
const OSXMMEXCPT = 0x400;
const UD = 6,
  XM = 19;

const context = new FloatContext();
/** Flags of all lanes so far. */
let collected = 0;

function begin(cpu: Cpu): void {
  const mxcsr = cpu.u32[state.mxcsr >> 2];
  context.reset((mxcsr >> 13) & 3, ~(mxcsr >> 7) & 0x3f);
  context.denormalsAreZero = (mxcsr & DAZ) !== 0;
  context.flushToZero = (mxcsr & FTZ) !== 0;
  collected = 0;
}

function endLane(): void {
  collected |= context.flags;
  context.flags = 0;
}

const PENDING = 0x8000_0000;
/** What a lower half leaves of a dot product: six flags in each eight bits, the first step lowest. */
const STEP_BITS = 8;

/**
 * Sticky flags into MXCSR; raises if one is unmasked. Exceptions found before computing hide those found after it. Those of the lower
 * of two halves wait for the upper half's.
 */
function finish(cpu: Cpu): void {
  if (cpu.u32[state.isLowerHalf >> 2] !== 0) {
    if (collected !== 0) cpu.u32[state.pendingFlags >> 2] = collected | PENDING;
    return;
  }
  collected |= cpu.u32[state.pendingFlags >> 2] & 0x3f;
  cpu.u32[state.pendingFlags >> 2] = 0;
  const early = collected & PRE_COMPUTATION & context.unmasked;
  cpu.u32[state.mxcsr >> 2] |= early !== 0 ? collected & PRE_COMPUTATION : collected;
  if ((collected & context.unmasked) !== 0) cpu.raise((cpu.u64[state.cr4 >> 3] & BigInt(OSXMMEXCPT)) !== 0n ? XM : UD);
}

const formatOf = (bits: number): FloatFormat => (bits === 32 ? SINGLE : DOUBLE);

/** As it is in memory, denormals included. */
function readRaw(cpu: Cpu, slot: number, bits: number, lane: number): Num {
  return bits === 32 ? unpack32(cpu.u32[(slot >> 2) + lane]) : unpack64(cpu.u64[(slot >> 3) + lane]);
}
function readLane(cpu: Cpu, slot: number, bits: number, lane: number): Num {
  const value = readRaw(cpu, slot, bits, lane);
  return value.denormal && context.denormalsAreZero ? zero(value.sign) : value;
}
/** A result as the next step reads it: denormal, or zero under DAZ. */
function stored(bits: number, result: Num): Num {
  const value = bits === 32 ? unpack32(pack32(result)) : unpack64(pack64(result));
  return value.denormal && context.denormalsAreZero ? zero(value.sign) : value;
}
function writeLane(cpu: Cpu, bits: number, lane: number, value: Num): void {
  if (bits === 32) cpu.u32[(RESULT >> 2) + lane] = pack32(value);
  else cpu.u64[(RESULT >> 3) + lane] = pack64(value);
}

/** MIN and MAX give the second operand unless the first is truly less (greater): for NaNs and for zeros too. */
function extreme(a: Num, b: Num, wanted: -1 | 1): Num {
  if (isNan(a) || isNan(b)) {
    context.flags |= IE;
    return b;
  }
  compare(context, a, b, true);
  return order(a, b) === wanted ? a : b;
}

function compute(operation: number, format: FloatFormat, a: Num, b: Num): Num {
  switch (operation) {
    case SSE_OPERATION.add:
      return add(context, format, sseNan, a, b);
    case SSE_OPERATION.multiply:
      return multiply(context, format, sseNan, a, b);
    case SSE_OPERATION.subtract:
      return subtract(context, format, sseNan, a, b);
    case SSE_OPERATION.divide:
      return divide(context, format, sseNan, a, b);
    case SSE_OPERATION.minimum:
      return extreme(a, b, -1);
    case SSE_OPERATION.maximum:
      return extreme(a, b, 1);
    default:
      return squareRoot(context, format, b);
  }
}

/** A predicate of CMPPS and its kin, see PREDICATES. */
function holds(predicate: number, a: Num, b: Num): boolean {
  const { less, equal, greater, unordered, signals } = PREDICATES;
  const ordering = compare(context, a, b, ((signals >>> predicate) & 1) !== 0);
  const table = ordering === undefined ? unordered : ordering === 0 ? equal : ordering < 0 ? less : greater;
  return ((table >>> (predicate & 15)) & 1) !== 0;
}

function copyDestination(cpu: Cpu): void {
  cpu.u8.copyWithin(RESULT, DESTINATION, DESTINATION + 16);
}

/** The integer that a failed conversion gives. */
const indefinite = (bits: number): bigint => 1n << BigInt(bits - 1);

/** Approximations of 1/x and 1/sqrt(x), here in full single precision; denormals count as zero, no flag is touched. */
function approximate(bits: number, root: boolean): number {
  const field = (bits >>> 23) & 0xff;
  const sign = bits & 0x8000_0000;
  if (field === 0xff && (bits & 0x7f_ffff) !== 0) return bits | 0x40_0000;
  if (field === 0) return sign | 0x7f80_0000;
  if (root && sign !== 0) return 0xffc0_0000;
  float[0] = 0;
  word[0] = bits;
  const x = float[0];
  float[0] = root ? 1 / Math.sqrt(x) : 1 / x;
  // Results below the normal range are flushed.
  return ((word[0] >>> 23) & 0xff) === 0 ? sign : word[0];
}
const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

export const sseHelpers: HelperTable = {
  /** a operation, b 32 or 64, c lanes, d predicate of comparisons. Lanes that are not computed are the destination's. */
  sseCompute(cpu, operation, bits, lanes, predicate) {
    copyDestination(cpu);
    begin(cpu);
    const format = formatOf(bits);
    for (let lane = 0; lane < lanes; lane++) {
      const a = readLane(cpu, DESTINATION, bits, lane);
      const b = readLane(cpu, SOURCE_VECTOR, bits, lane);
      if (operation === SSE_OPERATION.compare) {
        const ones = holds(predicate, a, b);
        if (bits === 32) cpu.u32[(RESULT >> 2) + lane] = ones ? 0xffff_ffff : 0;
        else cpu.u64[(RESULT >> 3) + lane] = ones ? 0xffff_ffff_ffff_ffffn : 0n;
      } else if ((operation === SSE_OPERATION.minimum || operation === SSE_OPERATION.maximum) && (isNan(a) || isNan(b))) {
        // The second operand comes through as it is, a signalling NaN included.
        context.flags |= IE;
        if (b.kind === "zero") writeLane(cpu, bits, lane, b);
        else if (bits === 32) cpu.u32[(RESULT >> 2) + lane] = cpu.u32[(SOURCE_VECTOR >> 2) + lane];
        else cpu.u64[(RESULT >> 3) + lane] = cpu.u64[(SOURCE_VECTOR >> 3) + lane];
      } else writeLane(cpu, bits, lane, compute(operation, format, a, b));
      endLane();
    }
    finish(cpu);
  },

  /** COMIS and UCOMIS. a 32 or 64, b 1: quiet NaNs signal. Returns ZF, PF and CF as RFLAGS bits. */
  sseCompareFlags(cpu, bits, quietSignals) {
    begin(cpu);
    const a = readLane(cpu, DESTINATION, bits, 0);
    const b = readLane(cpu, SOURCE_VECTOR, bits, 0);
    const ordering = compare(context, a, b, quietSignals !== 0);
    endLane();
    finish(cpu);
    return ordering === undefined ? 0x45 : ordering === 0 ? 0x40 : ordering < 0 ? 0x01 : 0;
  },

  /** a bits of the source, b lanes; to the other format. Lanes of the destination beyond the result are kept. */
  sseConvertFloat(cpu, bits, lanes) {
    begin(cpu);
    copyDestination(cpu);
    const to = bits === 32 ? 64 : 32;
    for (let lane = 0; lane < lanes; lane++) {
      writeLane(cpu, to, lane, convert(context, formatOf(to), readLane(cpu, SOURCE_VECTOR, bits, lane), true));
      endLane();
    }
    finish(cpu);
  },

  /** a bits of the float, b lanes, c bits of the integers, d 1: truncate. Result from lane 0 on, the rest zero. */
  sseToInteger(cpu, bits, lanes, integerBits, truncate) {
    begin(cpu);
    cpu.u8.fill(0, RESULT, RESULT + 16);
    for (let lane = 0; lane < lanes; lane++) {
      const source = readLane(cpu, SOURCE_VECTOR, bits, lane);
      const value = toInteger(context, source, integerBits, truncate !== 0 ? TO_ZERO : context.rounding);
      const stored = BigInt.asUintN(integerBits, value ?? indefinite(integerBits));
      if (integerBits === 32) cpu.u32[(RESULT >> 2) + lane] = Number(stored);
      else cpu.u64[(RESULT >> 3) + lane] = stored;
      endLane();
    }
    finish(cpu);
  },

  /** a bits of the float, b lanes, c bits of the integers. Lanes of the destination beyond the result are kept. */
  sseFromInteger(cpu, bits, lanes, integerBits) {
    begin(cpu);
    copyDestination(cpu);
    for (let lane = 0; lane < lanes; lane++) {
      const integer =
        integerBits === 32
          ? BigInt(cpu.i32[(SOURCE_VECTOR >> 2) + lane])
          : BigInt.asIntN(64, cpu.u64[(SOURCE_VECTOR >> 3) + lane]);
      const exact = fromInteger(integer);
      const value =
        exact.kind === "zero" ? exact : round(context, formatOf(bits), exact.sign, exact.exponent, exact.significand);
      writeLane(cpu, bits, lane, value);
      endLane();
    }
    finish(cpu);
  },

  /** After both halves of an operation of 256 bits, when the lower one has left flags. */
  sseSettle(cpu) {
    begin(cpu);
    finish(cpu);
  },

  /**
   * Fused multiply-add: DESTINATION * SOURCE_VECTOR + ADDEND. a bits, b lanes, c signs: bit 0 negates products, bits 1 and 2 the addends of
   * even and odd lanes. Lanes above those are left as they are.
   */
  sseFused(cpu, bits, lanes, signs) {
    begin(cpu);
    for (let lane = 0; lane < lanes; lane++) {
      const [a, b, c] = [DESTINATION, SOURCE_VECTOR, ADDEND].map((slot) => readLane(cpu, slot, bits, lane)) as [Num, Num, Num];
      const negatesAddend = ((signs >> (1 + (lane & 1))) & 1) !== 0;
      writeLane(cpu, bits, lane, multiplyAdd(context, formatOf(bits), a, b, c, (signs & 1) !== 0, negatesAddend));
      endLane();
    }
    finish(cpu);
  },

  /** VCVTPH2PS: a lanes of half precision from the low end of SOURCE_VECTOR. */
  sseFromHalf(cpu, lanes) {
    begin(cpu);
    for (let lane = 0; lane < lanes; lane++) {
      // Denormals are neither zero by DAZ nor an exception
      const value = unpackHalf(cpu.u16[(SOURCE_VECTOR >> 1) + lane]);
      writeLane(cpu, 32, lane, convert(context, SINGLE, value, false));
      endLane();
    }
    finish(cpu);
  },

  /** VCVTPS2PH: a lanes, b the immediate. */
  sseToHalf(cpu, lanes, control) {
    begin(cpu);
    if ((control & 4) === 0) context.rounding = control & 3;
    context.flushToZero = false;
    cpu.u8.fill(0, RESULT, RESULT + 16);
    for (let lane = 0; lane < lanes; lane++) {
      const value = convert(context, HALF, readLane(cpu, SOURCE_VECTOR, 32, lane), true);
      cpu.u16[(RESULT >> 1) + lane] = packHalf(value);
      endLane();
    }
    finish(cpu);
  },

  /** ADDSUBPS, ADDSUBPD. a bits, b lanes: even lanes subtract, odd ones add. */
  sseAddSubtract(cpu, bits, lanes) {
    begin(cpu);
    for (let lane = 0; lane < lanes; lane++) {
      const operation = (lane & 1) === 0 ? SSE_OPERATION.subtract : SSE_OPERATION.add;
      const [a, b] = [readLane(cpu, DESTINATION, bits, lane), readLane(cpu, SOURCE_VECTOR, bits, lane)];
      writeLane(cpu, bits, lane, compute(operation, formatOf(bits), a, b));
      endLane();
    }
    finish(cpu);
  },

  /** ROUNDPS and its kin. a bits, b lanes, c the immediate. Lanes of the destination beyond those are kept. */
  sseRound(cpu, bits, lanes, control) {
    copyDestination(cpu);
    begin(cpu);
    if ((control & 4) === 0) context.rounding = control & 3;
    for (let lane = 0; lane < lanes; lane++) {
      const value = readLane(cpu, SOURCE_VECTOR, bits, lane);
      writeLane(
        cpu,
        bits,
        lane,
        isNan(value) ? convert(context, formatOf(bits), value, false) : roundToInteger(context, value),
      );
      if ((control & 8) !== 0) context.flags &= ~PE;
      endLane();
    }
    finish(cpu);
  },

  /**
   * DPPS, DPPD. a bits, b the immediate: products of chosen lanes, summed two by two, to chosen lanes. Exceptions of a step come before
   * the next one, which sees its results; a step is that of both halves, so a lower half leaves its flags to the upper by step.
   */
  sseDotProduct(cpu, bits, control) {
    begin(cpu);
    const format = formatOf(bits);
    const lanes = 128 / bits;
    const isLower = cpu.u32[state.isLowerHalf >> 2] !== 0;
    const ofLower = isLower ? 0 : cpu.u32[state.pendingFlags >> 2];
    cpu.u32[state.pendingFlags >> 2] = 0;
    let terms = Array.from({ length: lanes }, (_, lane) => {
      if (((control >> (4 + lane)) & 1) === 0) return zero(0);
      const [a, b] = [readLane(cpu, DESTINATION, bits, lane), readLane(cpu, SOURCE_VECTOR, bits, lane)];
      return stored(bits, compute(SSE_OPERATION.multiply, format, a, b));
    });
    for (let step = 0; ; step += STEP_BITS) {
      endLane();
      if (isLower && collected !== 0) cpu.u32[state.pendingFlags >> 2] |= (collected << step) | PENDING;
      collected |= (ofLower >>> step) & 0x3f;
      if ((collected & context.unmasked) !== 0) {
        if (!isLower) finish(cpu);
        return;
      }
      if (terms.length === 1) break;
      if (!isLower) cpu.u32[state.mxcsr >> 2] |= collected;
      collected = 0;
      const before = terms;
      terms = before
        .filter((_, i) => (i & 1) === 0)
        .map((term, i) => stored(bits, compute(SSE_OPERATION.add, format, term, before[2 * i + 1])));
    }
    const [sum] = terms;
    for (let lane = 0; lane < lanes; lane++) writeLane(cpu, bits, lane, ((control >> lane) & 1) !== 0 ? sum : zero(0));
    if (!isLower) finish(cpu);
  },

  /** a 1: reciprocal of the square root; b lanes. */
  sseApproximate(cpu, root, lanes) {
    copyDestination(cpu);
    for (let lane = 0; lane < lanes; lane++) {
      cpu.u32[(RESULT >> 2) + lane] = approximate(cpu.u32[(SOURCE_VECTOR >> 2) + lane], root !== 0);
    }
  },

  /** MASKMOVDQU and MASKMOVQ: a bytes. Bytes of DESTINATION whose mask byte in SOURCE_VECTOR has its top bit set go to DS:rDI. */
  sseMaskedStore(cpu, bytes) {
    const segment = operandSegment(cpu);
    const width = cpu.u8[cpu.operation + op.addressSize];
    const base = BigInt.asUintN(width, cpu.reg(RDI));
    const chosen: number[] = [];
    for (let i = 0; i < bytes; i++) if ((cpu.u8[SOURCE_VECTOR + i] & 0x80) !== 0) chosen.push(i);
    const addresses = chosen.map((i) => cpu.linear(segment, BigInt.asUintN(width, base + BigInt(i)), 1, true));
    for (const address of addresses) cpu.probeWrite(address, 1);
    chosen.forEach((i, n) => {
      cpu.writeLinear(addresses[n], 1, BigInt(cpu.u8[DESTINATION + i]));
    });
  },
};
