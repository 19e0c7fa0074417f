/**
 * Shifts and rotates. The count is taken modulo 32 (64 for 64-bit operands), and a count of zero changes no flag. OF is defined
 * for counts of one only; the formula for one is used for all.
 */
import type { Bool, Emitter, Int } from "../emitter.ts";
import { type Form, type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";

const SHIFT_SOURCE = sdm("2B", "SAL/SAR/SHL/SHR - Shift");
const ROTATE_SOURCE = sdm("2B", "RCL/RCR/ROL/ROR - Rotate");

function groupTwoForms(digit: number): Form[] {
  return [
    form(`C0 /${digit} ib`, "r/m8, imm8"),
    form(`C1 /${digit} ib`, "r/mv, imm8"),
    form(`D0 /${digit}`, "r/m8, 1"),
    form(`D1 /${digit}`, "r/mv, 1"),
    form(`D2 /${digit}`, "r/m8, CL"),
    form(`D3 /${digit}`, "r/mv, CL"),
  ];
}

function maskedCount(e: Emitter, count: FormOperand): Int {
  if (count.text === "1") return e.int(1);
  return e.and(e.read(count), e.int(e.size === 64 ? 63 : 31));
}

/** Runs `body` when the count is not zero; needs no test where the form says 1. */
function unlessZero(e: Emitter, operand: FormOperand, count: Int, body: () => void): void {
  if (operand.text === "1") body();
  else e.if(e.ne(count, e.int(0)), body);
}

const signBit = (e: Emitter, a: Int): Bool => e.bit(a, e.size - 1);

/** SHL, SHR and SAR: `operation` gives result and carry for a count from 1 on, and the result unchanged for 0. */
function shift(
  e: Emitter,
  [target, by]: readonly FormOperand[],
  operation: (a: Int, count: Int) => { result: Int; carry: () => Bool; overflow: (carry: Bool) => Bool },
): void {
  const a = e.readForWrite(target);
  const count = maskedCount(e, by);
  const { result, carry, overflow } = operation(a, count);
  e.write(target, result);
  unlessZero(e, by, count, () => {
    const carryOut = carry();
    e.recordShiftFlags(result, carryOut, overflow(carryOut));
  });
}

export const SHL = instruction("SHL", {
  source: SHIFT_SOURCE,
  // /6 is an undocumented alias that silicon accepts
  forms: [...groupTwoForms(4), ...groupTwoForms(6)],
  semantics(e, operands) {
    const { size } = e;
    shift(e, operands, (a, count) => {
      const wide = e.shl(a, count, 64);
      const result = size === 64 ? wide : e.truncate(wide, size);
      return {
        result,
        carry: () => (size === 64 ? e.bit(a, e.sub(e.int(64), count, 64)) : e.bit(wide, size)),
        overflow: (carry) => e.xor1(signBit(e, result), carry),
      };
    });
  },
});

export const SHR = instruction("SHR", {
  source: SHIFT_SOURCE,
  forms: groupTwoForms(5),
  semantics(e, operands) {
    shift(e, operands, (a, count) => ({
      result: e.shr(a, count),
      carry: () => e.bit(a, e.sub(count, e.int(1), 64)),
      overflow: () => signBit(e, a),
    }));
  },
});

export const SAR = instruction("SAR", {
  source: SHIFT_SOURCE,
  forms: groupTwoForms(7),
  semantics(e, operands) {
    const { size } = e;
    shift(e, operands, (a, count) => {
      const signed = size === 64 ? a : e.signExtend(a, size);
      const wide = e.sar(signed, count, 64);
      return {
        result: size === 64 ? wide : e.truncate(wide, size),
        carry: () => e.bit(signed, e.sub(count, e.int(1), 64)),
        overflow: () => e.bool(false),
      };
    });
  },
});

/** Rotates change CF and OF only. */
function rotate(
  e: Emitter,
  [target, by]: readonly FormOperand[],
  operation: (a: Int, count: Int) => Int,
  flags: (result: Int) => { carry: Bool; overflow: Bool },
): void {
  const a = e.readForWrite(target);
  const count = maskedCount(e, by);
  const result = operation(a, count);
  e.write(target, result);
  unlessZero(e, by, count, () => {
    const { carry, overflow } = flags(result);
    e.setFlag("CF", carry);
    e.setFlag("OF", overflow);
  });
}

export const ROL = instruction("ROL", {
  source: ROTATE_SOURCE,
  forms: groupTwoForms(0),
  semantics(e, operands) {
    const { size } = e;
    rotate(
      e,
      operands,
      (a, count) => {
        const left = e.and(count, e.int(size - 1));
        return e.truncate(e.or(e.shl(a, left, 64), e.shr(a, e.sub(e.int(size), left, 64))), size);
      },
      (result) => {
        const carry = e.bit(result, 0);
        return { carry, overflow: e.xor1(signBit(e, result), carry) };
      },
    );
  },
});

export const ROR = instruction("ROR", {
  source: ROTATE_SOURCE,
  forms: groupTwoForms(1),
  semantics(e, operands) {
    const { size } = e;
    rotate(
      e,
      operands,
      (a, count) => {
        const right = e.and(count, e.int(size - 1));
        return e.truncate(e.or(e.shr(a, right), e.shl(a, e.sub(e.int(size), right, 64), 64)), size);
      },
      (result) => {
        const carry = signBit(e, result);
        return { carry, overflow: e.xor1(carry, e.bit(result, size - 2)) };
      },
    );
  },
});

/** The count of RCL and RCR: the rotated number has one bit more than the operand. */
function throughCarryCount(e: Emitter, by: FormOperand): Int {
  const count = maskedCount(e, by);
  return e.size === 8 || e.size === 16 ? e.rem(count, e.int(e.size + 1), false) : count;
}

/** Operand with CF above it, as one number of size + 1 bits (at most 33). */
function withCarry(e: Emitter, a: Int): Int {
  return e.or(a, e.shl(e.toInt(e.flag("CF")), e.int(e.size), 64));
}

export const RCL = instruction("RCL", {
  source: ROTATE_SOURCE,
  forms: groupTwoForms(2),
  semantics(e, [target, by]) {
    const { size } = e;
    const a = e.readForWrite(target);
    const count = throughCarryCount(e, by);
    const back = e.sub(e.int(size), count, 64);
    let result: Int;
    let carry: Bool;
    if (size === 64) {
      const carryIn = e.toInt(e.flag("CF"));
      const out = e.shr(a, back);
      const rotated = e.or(e.or(e.shl(a, count, 64), e.shl(carryIn, e.sub(count, e.int(1), 64), 64)), e.shr(out, e.int(1)));
      // A count of zero would shift by -1 above
      result = e.select(e.isZero(count), a, rotated);
      carry = e.bit(out, 0);
    } else {
      const number = withCarry(e, a);
      const rotated = e.or(e.shl(number, count, 64), e.shr(number, e.add(back, e.int(1), 64)));
      result = e.truncate(rotated, size);
      carry = e.bit(rotated, size);
    }
    e.write(target, result);
    e.if(e.ne(count, e.int(0)), () => {
      e.setFlag("CF", carry);
      e.setFlag("OF", e.xor1(signBit(e, result), carry));
    });
  },
});

export const RCR = instruction("RCR", {
  source: ROTATE_SOURCE,
  forms: groupTwoForms(3),
  semantics(e, [target, by]) {
    const { size } = e;
    const a = e.readForWrite(target);
    const count = throughCarryCount(e, by);
    const back = e.sub(e.int(size), count, 64);
    let result: Int;
    let carry: Bool;
    if (size === 64) {
      const carryIn = e.toInt(e.flag("CF"));
      const rotated = e.or(e.or(e.shr(a, count), e.shl(carryIn, back, 64)), e.shl(e.shl(a, back, 64), e.int(1), 64));
      result = e.select(e.isZero(count), a, rotated);
      carry = e.bit(a, e.sub(count, e.int(1), 64));
    } else {
      const number = withCarry(e, a);
      const rotated = e.or(e.shr(number, count), e.shl(number, e.add(back, e.int(1), 64), 64));
      result = e.truncate(rotated, size);
      carry = e.bit(rotated, size);
    }
    e.write(target, result);
    e.if(e.ne(count, e.int(0)), () => {
      e.setFlag("CF", carry);
      e.setFlag("OF", e.xor1(signBit(e, result), e.bit(result, size - 2)));
    });
  },
});

/** SHLD and SHRD: flags from the result; OF says that the sign changed. */
function writeDouble(e: Emitter, target: FormOperand, a: Int, count: Int, result: Int, carry: () => Bool): void {
  e.write(target, result);
  e.if(e.ne(count, e.int(0)), () => {
    e.recordShiftFlags(result, carry(), e.xor1(signBit(e, result), signBit(e, a)));
  });
}

/** 16-bit operands with counts above 16 are undefined; silicon shifts the first operand in again behind the second. */
function tripled(e: Emitter, a: Int, b: Int): Int {
  return e.or(e.or(e.shl(a, e.int(32), 64), e.shl(b, e.int(16), 64)), a);
}

export const SHLD = instruction("SHLD", {
  source: sdm("2B", "SHLD - Double Precision Shift Left"),
  forms: [form("0F A4 /r ib", "r/mv, rv, imm8"), form("0F A5 /r", "r/mv, rv, CL")],
  semantics(e, [target, source, by]) {
    const { size } = e;
    const a = e.readForWrite(target);
    const b = e.read(source);
    const count = maskedCount(e, by);
    if (size === 64) {
      const back = e.sub(e.int(64), count, 64);
      const result = e.select(e.isZero(count), a, e.or(e.shl(a, count, 64), e.shr(b, back)));
      writeDouble(e, target, a, count, result, () => e.bit(a, back));
    } else if (size === 32) {
      const number = e.or(e.shl(a, e.int(32), 64), b);
      const result = e.shr(e.shl(number, count, 64), e.int(32));
      writeDouble(e, target, a, count, result, () => e.bit(number, e.sub(e.int(64), count, 64)));
    } else {
      const number = tripled(e, a, b);
      const result = e.truncate(e.shr(e.shl(number, count, 64), e.int(32)), 16);
      writeDouble(e, target, a, count, result, () => e.bit(number, e.sub(e.int(48), count, 64)));
    }
  },
});

export const SHRD = instruction("SHRD", {
  source: sdm("2B", "SHRD - Double Precision Shift Right"),
  forms: [form("0F AC /r ib", "r/mv, rv, imm8"), form("0F AD /r", "r/mv, rv, CL")],
  semantics(e, [target, source, by]) {
    const { size } = e;
    const a = e.readForWrite(target);
    const b = e.read(source);
    const count = maskedCount(e, by);
    const last = (): Int => e.sub(count, e.int(1), 64);
    if (size === 64) {
      const back = e.sub(e.int(64), count, 64);
      const result = e.select(e.isZero(count), a, e.or(e.shr(a, count), e.shl(b, back, 64)));
      writeDouble(e, target, a, count, result, () => e.bit(a, last()));
    } else {
      const number = size === 32 ? e.or(e.shl(b, e.int(32), 64), a) : tripled(e, a, b);
      const result = e.truncate(e.shr(number, count), size);
      writeDouble(e, target, a, count, result, () => e.bit(number, last()));
    }
  },
});

export const shifts: readonly Instruction[] = [ROL, ROR, RCL, RCR, SHL, SHR, SAR, SHLD, SHRD];
