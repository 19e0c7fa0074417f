/** Binary integer arithmetic. Flags as the manual's "Flags Affected"; what it calls undefined is whatever comes cheapest. */
import { RAX, RBX, RCX, RDX, state } from "../cpu-state.ts";
import type { Emitter, Int } from "../emitter.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";

/** The encodings that ADD, OR, ADC, SBB, AND, SUB, XOR and CMP share: opcodes from `first` on and /`digit` of group 1. */
export function groupOneForms(first: number, digit: number, isLockable: boolean): Form[] {
  const opcode = (n: number): string => (first + n).toString(16).toUpperCase().padStart(2, "0");
  const lock = isLockable ? (["lock"] as const) : [];
  return [
    form(`${opcode(0)} /r`, "r/m8, r8", ...lock),
    form(`${opcode(1)} /r`, "r/mv, rv", ...lock),
    form(`${opcode(2)} /r`, "r8, r/m8"),
    form(`${opcode(3)} /r`, "rv, r/mv"),
    form(`${opcode(4)} ib`, "AL, imm8"),
    form(`${opcode(5)} iz`, "rAX, immz"),
    form(`80 /${digit} ib`, "r/m8, imm8", ...lock),
    form(`81 /${digit} iz`, "r/mv, immz", ...lock),
    form(`82 /${digit} ib`, "r/m8, imm8", "invalid64", ...lock),
    form(`83 /${digit} ib`, "r/mv, imm8sx", ...lock),
  ];
}

export const ADD = instruction("ADD", {
  source: sdm("2A", "ADD - Add"),
  forms: groupOneForms(0x00, 0, true),
  semantics(e, [target, source]) {
    const a = e.readForWrite(target);
    const b = e.read(source);
    const sum = e.add(a, b);
    e.write(target, sum);
    e.recordFlags("add", a, b, sum);
  },
});

export const ADC = instruction("ADC", {
  source: sdm("2A", "ADC - Add With Carry"),
  forms: groupOneForms(0x10, 2, true),
  semantics(e, [target, source]) {
    const a = e.readForWrite(target);
    const b = e.read(source);
    const sum = e.add(e.add(a, b), e.toInt(e.flag("CF")));
    e.write(target, sum);
    e.recordFlags("adc", a, b, sum);
  },
});

export const SUB = instruction("SUB", {
  source: sdm("2B", "SUB - Subtract"),
  forms: groupOneForms(0x28, 5, true),
  semantics(e, [target, source]) {
    const a = e.readForWrite(target);
    const b = e.read(source);
    const difference = e.sub(a, b);
    e.write(target, difference);
    e.recordFlags("sub", a, b, difference);
  },
});

export const SBB = instruction("SBB", {
  source: sdm("2B", "SBB - Integer Subtraction With Borrow"),
  forms: groupOneForms(0x18, 3, true),
  semantics(e, [target, source]) {
    const a = e.readForWrite(target);
    const b = e.read(source);
    const difference = e.sub(e.sub(a, b), e.toInt(e.flag("CF")));
    e.write(target, difference);
    e.recordFlags("sbb", a, b, difference);
  },
});

export const CMP = instruction("CMP", {
  source: sdm("2A", "CMP - Compare Two Operands"),
  forms: groupOneForms(0x38, 7, false),
  semantics(e, [left, right]) {
    const a = e.read(left);
    const b = e.read(right);
    e.recordFlags("sub", a, b, e.sub(a, b));
  },
});

export const INC = instruction("INC", {
  source: sdm("2A", "INC - Increment by 1"),
  forms: [form("FE /0", "r/m8", "lock"), form("FF /0", "r/mv", "lock"), form("40+r", "rv", "invalid64")],
  semantics(e, [target]) {
    const a = e.readForWrite(target);
    const one = e.int(1);
    const sum = e.add(a, one);
    e.write(target, sum);
    e.recordFlags("inc", a, one, sum);
  },
});

export const DEC = instruction("DEC", {
  source: sdm("2A", "DEC - Decrement by 1"),
  forms: [form("FE /1", "r/m8", "lock"), form("FF /1", "r/mv", "lock"), form("48+r", "rv", "invalid64")],
  semantics(e, [target]) {
    const a = e.readForWrite(target);
    const one = e.int(1);
    const difference = e.sub(a, one);
    e.write(target, difference);
    e.recordFlags("dec", a, one, difference);
  },
});

export const NEG = instruction("NEG", {
  source: sdm("2B", "NEG - Two's Complement Negation"),
  forms: [form("F6 /3", "r/m8", "lock"), form("F7 /3", "r/mv", "lock")],
  semantics(e, [target]) {
    const a = e.readForWrite(target);
    const zero = e.int(0);
    const difference = e.sub(zero, a);
    e.write(target, difference);
    e.recordFlags("sub", zero, a, difference);
  },
});

export const XADD = instruction("XADD", {
  source: sdm("2C", "XADD - Exchange and Add"),
  forms: [form("0F C0 /r", "r/m8, r8", "lock"), form("0F C1 /r", "r/mv, rv", "lock")],
  semantics(e, [target, source]) {
    const a = e.readForWrite(target);
    const b = e.read(source);
    const sum = e.add(a, b);
    if (e.isMemory(target)) {
      e.write(target, sum);
      e.write(source, a);
    } else {
      // With one register as both operands the sum is what stays
      e.write(source, a);
      e.write(target, sum);
    }
    e.recordFlags("add", a, b, sum);
  },
});

export const CMPXCHG = instruction("CMPXCHG", {
  source: sdm("2A", "CMPXCHG - Compare and Exchange"),
  forms: [form("0F B0 /r", "r/m8, r8", "lock"), form("0F B1 /r", "r/mv, rv", "lock")],
  semantics(e, [target, source]) {
    const old = e.readForWrite(target);
    const accumulator = e.reg(RAX, e.size);
    const replacement = e.read(source);
    const isEqual = e.eq(accumulator, old);
    // Memory is written either way, with its old value when they differ
    if (e.isMemory(target)) {
      e.write(target, e.select(isEqual, replacement, old));
      e.if(e.not1(isEqual), () => e.setReg(RAX, e.size, old));
    } else {
      e.if(
        isEqual,
        () => e.write(target, replacement),
        () => e.setReg(RAX, e.size, old),
      );
    }
    e.recordFlags("sub", accumulator, old, e.sub(accumulator, old));
  },
});

export const CMPXCHG8B = instruction("CMPXCHG8B", {
  source: sdm("2A", "CMPXCHG8B/CMPXCHG16B - Compare and Exchange Bytes"),
  forms: [form("0F C7 /1", "m64", "lock")],
  semantics(e, [target]) {
    const old = e.readForWrite(target);
    const expected = e.or(e.shl(e.reg(RDX, 32), e.int(32), 64), e.reg(RAX, 32));
    const replacement = e.or(e.shl(e.reg(RCX, 32), e.int(32), 64), e.reg(RBX, 32));
    const isEqual = e.eq(expected, old);
    e.write(target, e.select(isEqual, replacement, old));
    e.if(e.not1(isEqual), () => {
      e.setReg(RAX, 32, e.truncate(old, 32));
      e.setReg(RDX, 32, e.shr(old, e.int(32)));
    });
    e.setFlag("ZF", isEqual);
  },
});

export const CMPXCHG16B = instruction("CMPXCHG16B", {
  source: sdm("2A", "CMPXCHG8B/CMPXCHG16B - Compare and Exchange Bytes"),
  forms: [form("REX.W 0F C7 /1", "m128", "lock")],
  semantics(e, [target]) {
    e.checkAligned(target);
    const low = e.address(target);
    const high = e.and(e.add(low, e.int(8), 64), e.addressMask());
    e.probeStoreDefault(low, 64);
    const oldLow = e.loadDefault(low, 64);
    const oldHigh = e.loadDefault(high, 64);
    const isEqual = e.and1(e.eq(e.reg(RAX, 64), oldLow), e.eq(e.reg(RDX, 64), oldHigh));
    // Aligned, so both halves are in one page: when the first store does not fault the second does not either
    e.storeDefault(low, 64, e.select(isEqual, e.reg(RBX, 64), oldLow));
    e.storeDefault(high, 64, e.select(isEqual, e.reg(RCX, 64), oldHigh));
    e.if(e.not1(isEqual), () => {
      e.setReg(RAX, 64, oldLow);
      e.setReg(RDX, 64, oldHigh);
    });
    e.setFlag("ZF", isEqual);
  },
});

/** Stores a double-width product: AX, or the pair rDX:rAX. */
function writeProduct(e: Emitter, low: Int, high: Int): void {
  e.setReg(RAX, e.size, low);
  e.setReg(RDX, e.size, high);
}

export const MUL = instruction("MUL", {
  source: sdm("2B", "MUL - Unsigned Multiply"),
  forms: [form("F6 /4", "r/m8"), form("F7 /4", "r/mv")],
  semantics(e, [source]) {
    const { size } = e;
    const b = e.read(source);
    const a = e.reg(RAX, size);
    const product = e.mul(a, b, 64);
    const low = size === 64 ? product : e.truncate(product, size);
    const high = size === 64 ? e.mulHigh(a, b, false) : e.shr(product, e.int(size));
    if (size === 8) e.setReg(RAX, 16, product);
    else writeProduct(e, low, high);
    const overflows = e.ne(high, e.int(0));
    e.recordShiftFlags(low, overflows, overflows);
  },
});

/** Signed product of two operands of `e.size` bits: its low half, and whether that is not all of it. */
function signedProduct(e: Emitter, a: Int, b: Int): { low: Int; high: Int; overflows: ReturnType<Emitter["ne"]> } {
  const { size } = e;
  if (size === 64) {
    const low = e.mul(a, b, 64);
    const high = e.mulHigh(a, b, true);
    return { low, high, overflows: e.ne(high, e.sar(low, e.int(63), 64)) };
  }
  const product = e.mul(e.signExtend(a, size), e.signExtend(b, size), 64);
  const low = e.truncate(product, size);
  const high = e.truncate(e.shr(product, e.int(size)), size);
  return { low, high, overflows: e.ne(product, e.signExtend(low, size)) };
}

export const IMUL = instruction("IMUL", {
  source: sdm("2A", "IMUL - Signed Multiply"),
  forms: [
    form("F6 /5", "r/m8"),
    form("F7 /5", "r/mv"),
    form("0F AF /r", "rv, r/mv"),
    form("69 /r iz", "rv, r/mv, immz"),
    form("6B /r ib", "rv, r/mv, imm8sx"),
  ],
  semantics(e, operands) {
    const { size } = e;
    const isOneOperand = operands.length === 1;
    const a = isOneOperand ? e.reg(RAX, size) : e.read(operands[operands.length - 2]);
    const b = e.read(operands[operands.length - 1]);
    const { low, high, overflows } = signedProduct(e, a, b);
    if (!isOneOperand) e.write(operands[0], low);
    else if (size === 8) e.setReg(RAX, 16, e.or(e.shl(high, e.int(8), 16), low));
    else writeProduct(e, low, high);
    e.recordShiftFlags(low, overflows, overflows);
  },
});

/** 128 by 64 bits, in the helper `name`: dividend low, high and divisor in slots 0 to 2, quotient and remainder in 0 and 1. */
function divideInHelper(e: Emitter, name: string, low: Int, high: Int, divisor: Int): void {
  e.setState(state.helper, 64, low);
  e.setState(state.helper + 8, 64, high);
  e.setState(state.helper + 16, 64, divisor);
  e.helper(name);
  e.setReg(RAX, 64, e.state(state.helper, 64));
  e.setReg(RDX, 64, e.state(state.helper + 8, 64));
}

function writeQuotient(e: Emitter, quotient: Int, remainder: Int): void {
  const { size } = e;
  if (size === 8) e.setReg(RAX, 16, e.or(e.shl(e.truncate(remainder, 8), e.int(8), 16), e.truncate(quotient, 8)));
  else writeProduct(e, e.truncate(quotient, size), e.truncate(remainder, size));
}

/** The dividend of the forms below 64 bits: AX, DX:AX or EDX:EAX. */
function dividend(e: Emitter): Int {
  const { size } = e;
  if (size === 8) return e.reg(RAX, 16);
  return e.or(e.shl(e.reg(RDX, size), e.int(size), 64), e.reg(RAX, size));
}

export const DIV = instruction("DIV", {
  source: sdm("2A", "DIV - Unsigned Divide"),
  forms: [form("F6 /6", "r/m8"), form("F7 /6", "r/mv")],
  semantics(e, [source]) {
    const { size } = e;
    const divisor = e.read(source);
    e.raiseIf(e.isZero(divisor), "#DE");
    if (size === 64) {
      const low = e.reg(RAX, 64);
      const high = e.reg(RDX, 64);
      e.if(
        e.isZero(high),
        () => {
          const quotient = e.div(low, divisor, false);
          const remainder = e.rem(low, divisor, false);
          writeProduct(e, quotient, remainder);
        },
        () => divideInHelper(e, "divide128", low, high, divisor),
      );
      return;
    }
    const value = dividend(e);
    const quotient = e.div(value, divisor, false);
    e.raiseIf(e.ne(e.shr(quotient, e.int(size)), e.int(0)), "#DE");
    writeQuotient(e, quotient, e.rem(value, divisor, false));
  },
});

export const IDIV = instruction("IDIV", {
  source: sdm("2A", "IDIV - Signed Divide"),
  forms: [form("F6 /7", "r/m8"), form("F7 /7", "r/mv")],
  semantics(e, [source]) {
    const { size } = e;
    const divisor = size === 64 ? e.read(source) : e.signExtend(e.read(source), size);
    e.raiseIf(e.isZero(divisor), "#DE");
    // WebAssembly traps on the one quotient that overflows 64 bits, so it must not get there
    const lowest = e.int(-(2n ** 63n));
    const minusOne = e.int(-1);
    if (size === 64) {
      const low = e.reg(RAX, 64);
      const high = e.reg(RDX, 64);
      const fits = e.eq(high, e.sar(low, e.int(63), 64));
      e.if(
        e.and1(fits, e.not1(e.and1(e.eq(low, lowest), e.eq(divisor, minusOne)))),
        () => {
          const quotient = e.div(low, divisor, true);
          const remainder = e.rem(low, divisor, true);
          writeProduct(e, quotient, remainder);
        },
        () => divideInHelper(e, "signedDivide128", low, high, divisor),
      );
      return;
    }
    const raw = dividend(e);
    const value = size === 32 ? raw : e.signExtend(raw, size === 8 ? 16 : 32);
    if (size === 32) e.raiseIf(e.and1(e.eq(value, lowest), e.eq(divisor, minusOne)), "#DE");
    const quotient = e.div(value, divisor, true);
    e.raiseIf(e.ne(quotient, e.signExtend(e.truncate(quotient, size), size)), "#DE");
    writeQuotient(e, quotient, e.rem(value, divisor, true));
  },
});

export const arithmetic: readonly Instruction[] = [
  ADD,
  ADC,
  SUB,
  SBB,
  CMP,
  INC,
  DEC,
  NEG,
  XADD,
  CMPXCHG,
  CMPXCHG8B,
  CMPXCHG16B,
  MUL,
  IMUL,
  DIV,
  IDIV,
];
