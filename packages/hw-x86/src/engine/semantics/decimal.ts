/** Decimal adjustment: outside 64-bit mode only. */
import { RAX } from "../cpu-state.ts";
import type { Emitter, Int } from "../emitter.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";

/** DAA and DAS: 6 and 60h are added to, or taken from, AL. */
function adjustPacked(e: Emitter, isAddition: boolean): void {
  const old = e.reg(RAX, 8);
  const carryIn = e.flag("CF");
  const nibble = e.and(old, e.int(15));
  const lowAdjusts = e.or1(e.ltu(e.int(9), nibble), e.flag("AF"));
  const highAdjusts = e.or1(e.ltu(e.int(0x99), old), carryIn);
  const low = e.select(lowAdjusts, e.int(6), e.int(0));
  const high = e.select(highAdjusts, e.int(0x60), e.int(0));
  const by = e.add(low, high, 8);
  const result = isAddition ? e.add(old, by, 8) : e.sub(old, by, 8);
  e.setReg(RAX, 8, result);
  // The low adjustment of DAS may itself borrow
  const borrow = e.and1(lowAdjusts, e.ltu(old, e.int(6)));
  const carry = isAddition ? highAdjusts : e.or1(highAdjusts, borrow);
  e.recordShiftFlags(result, carry, e.bool(false), 8);
  e.setFlag("AF", lowAdjusts);
}

export const DAA = instruction("DAA", {
  source: sdm("2A", "DAA - Decimal Adjust AL After Addition"),
  forms: [form("27", "", "invalid64")],
  semantics: (e) => adjustPacked(e, true),
});

export const DAS = instruction("DAS", {
  source: sdm("2A", "DAS - Decimal Adjust AL After Subtraction"),
  forms: [form("2F", "", "invalid64")],
  semantics: (e) => adjustPacked(e, false),
});

/** AAA and AAS: AX changes by 106h when the low digit needs it. */
function adjustUnpacked(e: Emitter, isAddition: boolean): void {
  const old = e.reg(RAX, 16);
  const adjusts = e.or1(e.ltu(e.int(9), e.and(old, e.int(15))), e.flag("AF"));
  const by = e.select(adjusts, e.int(0x106), e.int(0));
  const moved = isAddition ? e.add(old, by, 16) : e.sub(old, by, 16);
  const result = e.and(moved, e.int(0xff0f));
  e.setReg(RAX, 16, result);
  e.recordShiftFlags(e.truncate(result, 8), adjusts, e.bool(false), 8);
  e.setFlag("AF", adjusts);
}

export const AAA = instruction("AAA", {
  source: sdm("2A", "AAA - ASCII Adjust After Addition"),
  forms: [form("37", "", "invalid64")],
  semantics: (e) => adjustUnpacked(e, true),
});

export const AAS = instruction("AAS", {
  source: sdm("2A", "AAS - ASCII Adjust AL After Subtraction"),
  forms: [form("3F", "", "invalid64")],
  semantics: (e) => adjustUnpacked(e, false),
});

function recordDigitFlags(e: Emitter, al: Int): void {
  e.recordFlags("logic", al, al, al, 8);
}

export const AAM = instruction("AAM", {
  source: sdm("2A", "AAM - ASCII Adjust AX After Multiply"),
  forms: [form("D4 ib", "imm8", "invalid64")],
  semantics(e, [base]) {
    const divisor = e.read(base);
    e.raiseIf(e.isZero(divisor), "#DE");
    const old = e.reg(RAX, 8);
    const digit = e.rem(old, divisor, false);
    e.setReg(RAX, 16, e.or(e.shl(e.div(old, divisor, false), e.int(8), 16), digit));
    recordDigitFlags(e, digit);
  },
});

export const AAD = instruction("AAD", {
  source: sdm("2A", "AAD - ASCII Adjust AX Before Division"),
  forms: [form("D5 ib", "imm8", "invalid64")],
  semantics(e, [base]) {
    const old = e.reg(RAX, 16);
    const high = e.shr(old, e.int(8));
    const result = e.add(e.truncate(old, 8), e.mul(high, e.read(base), 64), 8);
    e.setReg(RAX, 16, result);
    recordDigitFlags(e, result);
  },
});

export const decimal: readonly Instruction[] = [DAA, DAS, AAA, AAS, AAM, AAD];
