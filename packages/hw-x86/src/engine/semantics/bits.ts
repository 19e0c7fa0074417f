/** Single bits and bit scans. */
import type { Emitter, Int, Size } from "../emitter.ts";
import { type Form, type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";

/** The forms of BT and its kin: opcode with a register index, and digit of group 8 with an immediate one. */
function bitForms(opcode: string, digit: number, isLockable: boolean): Form[] {
  const lock = isLockable ? (["lock"] as const) : [];
  return [form(`0F ${opcode} /r`, "r/mv, rv", ...lock), form(`0F BA /${digit} ib`, "r/mv, imm8", ...lock)];
}

/**
 * The operand-sized unit that holds the bit, and the bit's number in it. A register index into memory reaches beyond the
 * operand: it is a signed number of bits from the address on. `replace` computes the new unit, undefined when only testing.
 */
function bitOperation(
  e: Emitter,
  [target, index]: readonly FormOperand[],
  replace: ((unit: Int, mask: Int) => Int) | undefined,
): void {
  const size = e.size as 16 | 32 | 64;
  const number = e.read(index);
  const inUnit = e.and(number, e.int(size - 1));
  const mask = (): Int => e.shl(e.int(1), inUnit, 64);
  if (e.isMemory(target) && index.text === "rv") {
    const log2 = size === 16 ? 4 : size === 32 ? 5 : 6;
    const units = e.sar(e.signExtend(number, size), e.int(log2), 64);
    const distance = e.shl(units, e.int(log2 - 3), 64);
    const offset = e.and(e.add(e.address(target), distance, 64), e.addressMask());
    if (replace) e.probeStoreDefault(offset, size);
    const unit = e.loadDefault(offset, size);
    if (replace) e.storeDefault(offset, size, replace(unit, mask()));
    e.setFlag("CF", e.bit(unit, inUnit));
    return;
  }
  const unit = replace ? e.readForWrite(target) : e.read(target);
  if (replace) e.write(target, replace(unit, mask()));
  e.setFlag("CF", e.bit(unit, inUnit));
}

export const BT = instruction("BT", {
  source: sdm("2A", "BT - Bit Test"),
  forms: bitForms("A3", 4, false),
  semantics(e, operands) {
    bitOperation(e, operands, undefined);
  },
});

export const BTS = instruction("BTS", {
  source: sdm("2A", "BTS - Bit Test and Set"),
  forms: bitForms("AB", 5, true),
  semantics(e, operands) {
    bitOperation(e, operands, (unit, mask) => e.or(unit, mask));
  },
});

export const BTR = instruction("BTR", {
  source: sdm("2A", "BTR - Bit Test and Reset"),
  forms: bitForms("B3", 6, true),
  semantics(e, operands) {
    bitOperation(e, operands, (unit, mask) => e.and(unit, e.not(mask, e.size)));
  },
});

export const BTC = instruction("BTC", {
  source: sdm("2A", "BTC - Bit Test and Complement"),
  forms: bitForms("BB", 7, true),
  semantics(e, operands) {
    bitOperation(e, operands, (unit, mask) => e.xor(unit, mask));
  },
});

/** A source of zero leaves the destination as it was, all of it, and sets ZF. */
function scan(e: Emitter, target: FormOperand, source: Int, position: () => Int): void {
  e.if(e.ne(source, e.int(0)), () => e.write(target, position()));
  e.recordFlags("logic", source, source, source);
}

export const BSF = instruction("BSF", {
  source: sdm("2A", "BSF - Bit Scan Forward"),
  forms: [form("0F BC /r", "rv, r/mv")],
  semantics(e, [target, operand]) {
    const source = e.read(operand);
    scan(e, target, source, () => e.countTrailingZeros(source));
  },
});

export const BSR = instruction("BSR", {
  source: sdm("2A", "BSR - Bit Scan Reverse"),
  forms: [form("0F BD /r", "rv, r/mv")],
  semantics(e, [target, operand]) {
    const source = e.read(operand);
    scan(e, target, source, () => e.sub(e.int(63), e.countLeadingZeros(source), 64));
  },
});

export const POPCNT = instruction("POPCNT", {
  source: sdm("2B", "POPCNT - Return the Count of Number of Bits Set to 1"),
  forms: [form("F3 0F B8 /r", "rv, r/mv")],
  semantics(e, [target, operand]) {
    const source = e.read(operand);
    e.write(target, e.popCount(source));
    // All flags are cleared but ZF. A one has neither sign nor even parity, so it stands for any count but zero
    const stand = e.toInt(e.ne(source, e.int(0)));
    e.recordFlags("logic", stand, stand, stand, 64 satisfies Size);
    e.setFlag("PF", e.bool(false));
  },
});

/** Counts of LZCNT and TZCNT: CF for a source of zero, ZF for a count of zero; the other flags are undefined. */
function recordCount(e: Emitter, source: Int, count: Int): void {
  e.recordFlags("logic", count, count, count);
  e.setFlag("CF", e.isZero(source));
}

export const LZCNT = instruction("LZCNT", {
  source: sdm("2A", "LZCNT - Count the Number of Leading Zero Bits"),
  forms: [form("F3 0F BD /r", "rv, r/mv")],
  semantics(e, [target, operand]) {
    const source = e.read(operand);
    const count = e.sub(e.countLeadingZeros(source), e.int(64 - e.size));
    e.write(target, count);
    recordCount(e, source, count);
  },
});

export const TZCNT = instruction("TZCNT", {
  source: sdm("2B", "TZCNT - Count the Number of Trailing Zero Bits"),
  forms: [form("F3 0F BC /r", "rv, r/mv")],
  semantics(e, [target, operand]) {
    const source = e.read(operand);
    const bounded = e.size === 64 ? source : e.or(source, e.int(1n << BigInt(e.size)));
    const count = e.countTrailingZeros(bounded);
    e.write(target, count);
    recordCount(e, source, count);
  },
});

export const bits: readonly Instruction[] = [BT, BTS, BTR, BTC, BSF, BSR, POPCNT, LZCNT, TZCNT];
