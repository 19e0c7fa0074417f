/** Helpers of the basic x87 instructions: loads, stores, arithmetic, comparison. Each instruction's exceptions are all here. */
import type { Cpu } from "../cpu.ts";
import type { HelperTable } from "../helpers.ts";
import {
  add,
  compare,
  convert,
  divide,
  fromInteger,
  multiply,
  type Ordering,
  roundToInteger,
  squareRoot,
  subtract,
  toInteger,
  x87Nan,
} from "./float-arithmetic.ts";
import {
  BY_PRECISION_CONTROL,
  DE,
  DEFAULT_NAN,
  DOUBLE,
  EXTENDED,
  FloatContext,
  IE,
  isNan,
  type Num,
  PE,
  pack32,
  pack64,
  quieted,
  SINGLE,
  TO_ZERO,
  unpack32,
  unpack64,
  zero,
} from "./float-format.ts";
import {
  C0,
  C1,
  C2,
  C3,
  checkStore,
  isEmpty,
  noteInstruction,
  noteOperand,
  pop,
  precisionControl,
  push,
  pushOver,
  raiseFlags,
  readRaw,
  readRegister,
  rounding,
  setC1,
  setCodes,
  setEmpty,
  setStatus,
  settle,
  stackFault,
  status,
  unmasked,
  VALUE,
  writeRaw,
  writeRegister,
} from "./x87-state.ts";

/** Where the second operand of arithmetic and comparison is, as rows pass it. */
export const SOURCE = { register: 0, single: 1, double: 2, int16: 3, int32: 4, int64: 5 } as const;
/** Operations in the order of the opcode extensions of D8. */
export const ARITHMETIC = { add: 0, multiply: 1, subtract: 4, subtractReverse: 5, divide: 6, divideReverse: 7 } as const;

const context = new FloatContext();
export function begin(cpu: Cpu): FloatContext {
  context.reset(rounding(cpu), unmasked(cpu));
  return context;
}

/** The memory operand that the row loaded into VALUE. Single and double ones may raise IE and DE as the load of them does. */
function memoryOperand(cpu: Cpu, source: number): Num {
  switch (source) {
    case SOURCE.single:
      return unpack32(cpu.u32[VALUE >> 2]);
    case SOURCE.double:
      return unpack64(cpu.u64[VALUE >> 3]);
    case SOURCE.int16:
      return fromInteger(BigInt.asIntN(16, cpu.u64[VALUE >> 3]));
    case SOURCE.int32:
      return fromInteger(BigInt.asIntN(32, cpu.u64[VALUE >> 3]));
    default:
      return fromInteger(BigInt.asIntN(64, cpu.u64[VALUE >> 3]));
  }
}

function note(cpu: Cpu, source: number): void {
  noteInstruction(cpu);
  if (source !== SOURCE.register) noteOperand(cpu);
}

function compute(operation: number, cpu: Cpu, a: Num, b: Num): Num {
  const format = BY_PRECISION_CONTROL[precisionControl(cpu)];
  switch (operation) {
    case ARITHMETIC.add:
      return add(context, format, x87Nan, a, b);
    case ARITHMETIC.multiply:
      return multiply(context, format, x87Nan, a, b);
    case ARITHMETIC.subtract:
      return subtract(context, format, x87Nan, a, b);
    case ARITHMETIC.subtractReverse:
      return subtract(context, format, x87Nan, b, a);
    case ARITHMETIC.divide:
      return divide(context, format, x87Nan, a, b);
    default:
      return divide(context, format, x87Nan, b, a);
  }
}

/** Operands and destination of arithmetic: ST(0) with memory or ST(i); `toIndex` puts the result there and `andPop` pops. */
function arithmetic(cpu: Cpu, operation: number, source: number, index: number, mode: number): void {
  note(cpu, source);
  const target = mode === 0 ? 0 : index;
  const empty = isEmpty(cpu, 0) || (source === SOURCE.register && isEmpty(cpu, index));
  if (empty) {
    if (!stackFault(cpu, false)) return;
    writeRegister(cpu, target, DEFAULT_NAN);
  } else {
    begin(cpu);
    const st0 = readRegister(cpu, 0);
    const other = source === SOURCE.register ? readRegister(cpu, index) : memoryOperand(cpu, source);
    const result = mode === 0 ? compute(operation, cpu, st0, other) : compute(operation, cpu, other, st0);
    if (!settle(cpu, context)) return;
    writeRegister(cpu, target, result);
  }
  if (mode === 2) pop(cpu);
}

const CODES = new Map<Ordering, number>([
  [-1, C0],
  [0, C3],
  [1, 0],
  [undefined, C0 | C2 | C3],
]);
/** ZF, PF, CF as RFLAGS bits. */
const FLAGS = new Map<Ordering, number>([
  [-1, 0x01],
  [0, 0x40],
  [1, 0],
  [undefined, 0x45],
]);

interface Comparison {
  ordering: Ordering;
  /** False when an unmasked exception keeps the instruction from popping. */
  completes: boolean;
}

/** Ordering of ST(0) and the operand, which shows even when the comparison raised an unmasked exception. */
function orderWith(cpu: Cpu, source: number, index: number, quietSignals: boolean): Comparison {
  note(cpu, source);
  setC1(cpu, false);
  if (isEmpty(cpu, 0) || (source === SOURCE.register && isEmpty(cpu, index))) {
    return { ordering: undefined, completes: stackFault(cpu, false) };
  }
  begin(cpu);
  const other = source === SOURCE.register ? readRegister(cpu, index) : memoryOperand(cpu, source);
  const ordering = compare(context, readRegister(cpu, 0), other, quietSignals);
  return { ordering, completes: settle(cpu, context) };
}

function loadFloat(cpu: Cpu, isDouble: boolean): void {
  noteInstruction(cpu);
  noteOperand(cpu);
  setC1(cpu, false);
  if (!isEmpty(cpu, 7)) {
    push(cpu, DEFAULT_NAN);
    return;
  }
  begin(cpu);
  const value = convert(context, EXTENDED, memoryOperand(cpu, isDouble ? SOURCE.double : SOURCE.single), true);
  settle(cpu, context);
  // An unmasked denormal operand is loaded all the same.
  if ((context.flags & context.unmasked & IE) === 0) push(cpu, value);
}

/** Results of the first half of a store: 0 nothing happens, 1 store and complete. */
const DO_NOTHING = 0;
const STORE = 1;
/** Status word of a store that has yet to write memory: nothing may change before that. */
let pendingFlags = 0;
let pendingC1 = false;

/** First half of a store to memory: flags are kept for `fpuStored`, unless nothing is stored, which is final. */
function prepare(cpu: Cpu, flags: number, c1: boolean, refuse: number): number {
  if ((flags & refuse) !== 0) {
    noteInstruction(cpu);
    noteOperand(cpu);
    // Nothing was rounded.
    setC1(cpu, false);
    raiseFlags(cpu, flags & ~PE);
    return DO_NOTHING;
  }
  pendingFlags = flags;
  pendingC1 = c1;
  return STORE;
}

const STACK_UNDERFLOW = 0x41;

function storeFloat(cpu: Cpu, isDouble: boolean): number {
  checkStore(cpu, isDouble ? 8 : 4);
  if (isEmpty(cpu, 0)) {
    cpu.u64[VALUE >> 3] = isDouble ? pack64(DEFAULT_NAN) : BigInt(pack32(DEFAULT_NAN));
    return prepare(cpu, STACK_UNDERFLOW, false, unmasked(cpu) & IE);
  }
  begin(cpu);
  const value = convert(context, isDouble ? DOUBLE : SINGLE, readRegister(cpu, 0), false);
  cpu.u64[VALUE >> 3] = isDouble ? pack64(value) : BigInt(pack32(value));
  // Memory gets no result with a wrapped exponent: with these unmasked nothing is stored.
  return prepare(cpu, context.flags, context.roundedUp, context.unmasked & 0x1f);
}

function storeInteger(cpu: Cpu, bits: number, truncates = 0): number {
  checkStore(cpu, bits / 8);
  const indefinite = 1n << BigInt(bits - 1);
  if (isEmpty(cpu, 0)) {
    cpu.u64[VALUE >> 3] = indefinite;
    return prepare(cpu, STACK_UNDERFLOW, false, unmasked(cpu) & IE);
  }
  begin(cpu);
  const value = toInteger(context, readRegister(cpu, 0), bits, truncates !== 0 ? TO_ZERO : context.rounding);
  cpu.u64[VALUE >> 3] = BigInt.asUintN(bits, value ?? indefinite);
  return prepare(cpu, context.flags, context.roundedUp, context.unmasked & IE);
}

/** Unary operations on ST(0) that only touch the sign. */
function changeSign(cpu: Cpu, clear: boolean): void {
  noteInstruction(cpu);
  setC1(cpu, false);
  if (isEmpty(cpu, 0)) {
    if (stackFault(cpu, false)) writeRegister(cpu, 0, DEFAULT_NAN);
    return;
  }
  const { signExponent, significand } = readRaw(cpu, 0);
  writeRaw(cpu, 0, clear ? signExponent & 0x7fff : signExponent ^ 0x8000, significand);
}

function examine(cpu: Cpu): number {
  const { signExponent } = readRaw(cpu, 0);
  const sign = signExponent & 0x8000 ? C1 : 0;
  if (isEmpty(cpu, 0)) return sign | C3 | C0;
  const value = readRegister(cpu, 0);
  if (value.denormal) return sign | C3 | C2;
  switch (value.kind) {
    case "zero":
      return sign | C3;
    case "finite":
      return sign | C2;
    case "infinity":
      return sign | C2 | C0;
    case "unsupported":
      return sign;
    default:
      return sign | C0;
  }
}

/** Constants of D9 E8 to D9 EE: exponent, significand rounded down, and whether nearest and up are one more. */
const CONSTANTS: readonly { signExponent: number; significand: bigint; nearestUp: boolean; exact: boolean }[] = [
  { signExponent: 0x3fff, significand: 0x8000_0000_0000_0000n, nearestUp: false, exact: true }, // FLD1
  { signExponent: 0x4000, significand: 0xd49a_784b_cd1b_8afen, nearestUp: false, exact: false }, // FLDL2T: log2 10
  { signExponent: 0x3fff, significand: 0xb8aa_3b29_5c17_f0bbn, nearestUp: true, exact: false }, // FLDL2E: log2 e
  { signExponent: 0x4000, significand: 0xc90f_daa2_2168_c234n, nearestUp: true, exact: false }, // FLDPI
  { signExponent: 0x3ffd, significand: 0x9a20_9a84_fbcf_f798n, nearestUp: true, exact: false }, // FLDLG2: log10 2
  { signExponent: 0x3ffe, significand: 0xb172_17f7_d1cf_79abn, nearestUp: true, exact: false }, // FLDLN2: ln 2
  { signExponent: 0, significand: 0n, nearestUp: false, exact: true }, // FLDZ
];

/** Result of an operation on ST(0), with underflow of the stack, exceptions and store. */
export function unary(cpu: Cpu, operation: (st0: Num) => Num): void {
  noteInstruction(cpu);
  setC1(cpu, false);
  if (isEmpty(cpu, 0)) {
    if (stackFault(cpu, false)) writeRegister(cpu, 0, DEFAULT_NAN);
    return;
  }
  begin(cpu);
  const result = operation(readRegister(cpu, 0));
  if (settle(cpu, context)) writeRegister(cpu, 0, result);
}

/** NaN, infinity and invalid encodings of one operand: the result, or undefined for numbers. Records IE and DE. */
export function specialOperand(a: Num): Num | undefined {
  if (a.kind === "unsupported") {
    context.flags |= IE;
    return DEFAULT_NAN;
  }
  if (isNan(a)) {
    if (a.kind === "signalling") context.flags |= IE;
    return quieted(a);
  }
  if (a.denormal) context.flags |= DE;
  return undefined;
}

export const x87Arithmetic: HelperTable = {
  /** a operation, b source, c index, d 0: ST(0) op= source; 1: ST(i) op= ST(0); 2: and pop. */
  fpuArithmetic: arithmetic,

  /** a source, b index, c pops, d 1: quiet NaNs do not signal. */
  fpuCompare(cpu, source, index, pops, unordered) {
    const { ordering, completes } = orderWith(cpu, source, index, unordered === 0);
    setCodes(cpu, CODES.get(ordering) ?? 0);
    for (let i = 0; completes && i < pops; i++) pop(cpu);
  },
  /** a index, b pops, c unordered. Returns ZF, PF and CF. */
  fpuCompareFlags(cpu, index, pops, unordered) {
    const { ordering, completes } = orderWith(cpu, SOURCE.register, index, unordered === 0);
    for (let i = 0; completes && i < pops; i++) pop(cpu);
    return FLAGS.get(ordering) ?? 0;
  },
  fpuTest(cpu) {
    noteInstruction(cpu);
    setC1(cpu, false);
    let ordering: Ordering;
    if (isEmpty(cpu, 0)) stackFault(cpu, false);
    else {
      begin(cpu);
      ordering = compare(context, readRegister(cpu, 0), zero(0), true);
      settle(cpu, context);
    }
    setCodes(cpu, CODES.get(ordering) ?? 0);
  },
  fpuExamine(cpu) {
    noteInstruction(cpu);
    setStatus(cpu, (status(cpu) & ~(C0 | C1 | C2 | C3)) | examine(cpu));
  },

  fpuLoadSingle: (cpu) => loadFloat(cpu, false),
  fpuLoadDouble: (cpu) => loadFloat(cpu, true),
  /** a source, one of the integers. */
  fpuLoadInteger(cpu, source) {
    note(cpu, source);
    setC1(cpu, false);
    push(cpu, memoryOperand(cpu, source));
  },
  fpuLoadRegister(cpu, index) {
    noteInstruction(cpu);
    setC1(cpu, false);
    if (isEmpty(cpu, index)) {
      if (stackFault(cpu, false)) pushOver(cpu, DEFAULT_NAN);
      return;
    }
    const { signExponent, significand } = readRaw(cpu, index);
    if (!isEmpty(cpu, 7)) {
      push(cpu, DEFAULT_NAN);
      return;
    }
    push(cpu, zero(0));
    if (!isEmpty(cpu, 0)) writeRaw(cpu, 0, signExponent, significand);
  },
  fpuLoadConstant(cpu, number) {
    noteInstruction(cpu);
    setC1(cpu, false);
    if (!isEmpty(cpu, 7)) {
      push(cpu, DEFAULT_NAN);
      return;
    }
    const constant = CONSTANTS[number];
    const mode = rounding(cpu);
    const up = !constant.exact && (mode === 2 || (mode === 0 && constant.nearestUp));
    push(cpu, zero(0));
    writeRaw(cpu, 0, constant.signExponent, constant.significand + (up ? 1n : 0n));
  },

  /** First halves of stores: the value in VALUE; 0: nothing is to be stored, and all is done. */
  fpuStoreSingle: (cpu) => storeFloat(cpu, false),
  fpuStoreDouble: (cpu) => storeFloat(cpu, true),
  /** a bits, b 1: truncate whatever the control word says. */
  fpuStoreInteger: storeInteger,
  /** Second half, after memory was written. a: 1 to pop. */
  fpuStored(cpu, andPop) {
    noteInstruction(cpu);
    noteOperand(cpu);
    setC1(cpu, pendingC1);
    raiseFlags(cpu, pendingFlags);
    if (andPop !== 0) pop(cpu);
  },
  /** The undocumented alias of FSTP at D9 D8: an empty ST(0) is popped without a word. */
  fpuStoreUnchecked(cpu, index) {
    noteInstruction(cpu);
    setC1(cpu, false);
    if (!isEmpty(cpu, 0)) {
      const { signExponent, significand } = readRaw(cpu, 0);
      writeRaw(cpu, index, signExponent, significand);
    }
    pop(cpu);
  },
  /** FST and FSTP to a register. */
  fpuStoreRegister(cpu, index, andPop) {
    noteInstruction(cpu);
    setC1(cpu, false);
    if (isEmpty(cpu, 0)) {
      if (!stackFault(cpu, false)) return;
      writeRegister(cpu, index, DEFAULT_NAN);
    } else {
      const { signExponent, significand } = readRaw(cpu, 0);
      writeRaw(cpu, index, signExponent, significand);
    }
    if (andPop !== 0) pop(cpu);
  },

  fpuChangeSign: (cpu) => changeSign(cpu, false),
  fpuAbsolute: (cpu) => changeSign(cpu, true),
  fpuSquareRoot: (cpu) => unary(cpu, (a) => squareRoot(context, BY_PRECISION_CONTROL[precisionControl(cpu)], a)),
  fpuRoundToInteger: (cpu) => unary(cpu, (a) => specialOperand(a) ?? roundToInteger(context, a)),

  fpuExchange(cpu, index) {
    noteInstruction(cpu);
    setC1(cpu, false);
    const emptyHere = isEmpty(cpu, 0);
    const emptyThere = isEmpty(cpu, index);
    if (emptyHere || emptyThere) {
      if (!stackFault(cpu, false)) return;
      if (emptyHere) writeRegister(cpu, 0, DEFAULT_NAN);
      if (emptyThere) writeRegister(cpu, index, DEFAULT_NAN);
    }
    const a = readRaw(cpu, 0);
    const b = readRaw(cpu, index);
    writeRaw(cpu, 0, b.signExponent, b.significand);
    writeRaw(cpu, index, a.signExponent, a.significand);
  },
  /** FCMOVcc: b is the condition. */
  fpuMove(cpu, index, condition) {
    noteInstruction(cpu);
    if (isEmpty(cpu, 0) || isEmpty(cpu, index)) {
      // Whether or not the condition holds.
      if (stackFault(cpu, false)) writeRegister(cpu, 0, DEFAULT_NAN);
      return;
    }
    if (condition === 0) return;
    const { signExponent, significand } = readRaw(cpu, index);
    writeRaw(cpu, 0, signExponent, significand);
  },
  fpuFree(cpu, index, andPop) {
    noteInstruction(cpu);
    setC1(cpu, false);
    setEmpty(cpu, index, true);
    if (andPop !== 0) pop(cpu);
  },
  /** FINCSTP and FDECSTP: a is what to add to TOP. */
  fpuTurnStack(cpu, by) {
    noteInstruction(cpu);
    const word = status(cpu) & ~C1;
    setStatus(cpu, (word & ~0x3800) | ((((word >> 11) + by) & 7) << 11));
  },
};

export { context as x87Context };
