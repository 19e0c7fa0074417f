/** BMI1 and BMI2: VEX-encoded operations on general registers. LZCNT and TZCNT are with the bit scans (bits.ts). */
import { RDX } from "../cpu-state.ts";
import type { Bool, Emitter, Int } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";

function row(
  mnemonic: string,
  opcode: string,
  operands: string,
  semantics: (e: Emitter, operands: readonly FormOperand[]) => void,
): Instruction {
  // No VEX prefix is recognized in real and virtual-8086 mode
  return instruction(mnemonic, {
    source: sdm("2", mnemonic),
    requires: ["protected"],
    forms: [form(opcode, operands)],
    semantics,
  });
}

/** ZF and SF of the result, the given CF, OF clear. AF and PF are undefined. */
function record(e: Emitter, result: Int, carry: Bool): void {
  e.recordFlags("logic", result, result, result);
  e.setFlag("CF", carry);
}

/** BLSI, BLSMSK, BLSR: of the source and of the source less one. */
function lowestBit(
  mnemonic: string,
  digit: number,
  operation: (e: Emitter, source: Int, less: Int) => Int,
  carryOfZero: boolean,
): Instruction {
  return row(mnemonic, `VEX.LZ.0F38 F3 /${digit}`, "ry=v, r/my", (e, [target, operand]) => {
    const source = e.read(operand);
    const result = operation(e, source, e.sub(source, e.int(1)));
    const isZero = e.isZero(source);
    e.write(target, result);
    record(e, result, carryOfZero ? isZero : e.not1(isZero));
  });
}

/** SARX, SHLX, SHRX: by a register, no flags. */
function shift(mnemonic: string, prefix: string, operation: (e: Emitter, value: Int, count: Int) => Int): Instruction {
  return row(mnemonic, `VEX.LZ.${prefix}.0F38 F7 /r`, "ry, r/my, ry=v", (e, [target, operand, count]) => {
    const value = e.read(operand);
    e.write(target, operation(e, value, e.and(e.read(count), e.int(e.size - 1))));
  });
}

/** PDEP and PEXT, a bit of the mask at a time. */
function gather(e: Emitter, source: Int, mask: Int, isDeposit: boolean): Int {
  const left = e.variable("i64", mask);
  const bits = e.variable("i64", e.int(1));
  const result = e.variable("i64", e.int(0));
  e.if(e.ne(mask, e.int(0)), () => {
    e.loopWhile(() => {
      const lowest = e.and(left.get(), e.neg(left.get(), 64));
      const [from, to] = isDeposit ? [bits.get(), lowest] : [lowest, bits.get()];
      const isSet = e.ne(e.and(source, from), e.int(0));
      result.set(e.or(result.get(), e.select(isSet, to, e.int(0))));
      left.set(e.and(left.get(), e.sub(left.get(), e.int(1), 64)));
      bits.set(e.shl(bits.get(), e.int(1), 64));
      return e.ne(left.get(), e.int(0));
    });
  });
  return result.get();
}
const gathering = (mnemonic: string, prefix: string, isDeposit: boolean): Instruction =>
  row(mnemonic, `VEX.LZ.${prefix}.0F38 F5 /r`, "ry, ry=v, r/my", (e, [target, source, mask]) => {
    const chosen = e.read(mask);
    e.write(target, e.truncate(gather(e, e.read(source), chosen, isDeposit), e.size));
  });

export const bitManipulation: readonly Instruction[] = [
  row("ANDN", "VEX.LZ.0F38 F2 /r", "ry, ry=v, r/my", (e, [target, inverted, operand]) => {
    const value = e.read(operand);
    const result = e.and(e.not(e.read(inverted)), value);
    e.write(target, result);
    record(e, result, e.bool(false));
  }),
  row("BEXTR", "VEX.LZ.0F38 F7 /r", "ry, r/my, ry=v", (e, [target, operand, control]) => {
    const value = e.read(operand);
    const field = e.read(control);
    const start = e.and(field, e.int(255));
    const length = e.and(e.shr(field, e.int(8)), e.int(255));
    const moved = e.select(e.ltu(start, e.int(e.size)), e.shr(value, start), e.int(0));
    const mask = e.select(e.ltu(length, e.int(64)), e.sub(e.shl(e.int(1), length, 64), e.int(1), 64), e.int(-1));
    const result = e.and(moved, mask);
    e.write(target, result);
    record(e, result, e.bool(false));
  }),
  lowestBit("BLSR", 1, (e, source, less) => e.and(source, less), true),
  lowestBit("BLSMSK", 2, (e, source, less) => e.xor(source, less), true),
  lowestBit("BLSI", 3, (e, source) => e.and(source, e.neg(source)), false),
  row("BZHI", "VEX.LZ.0F38 F5 /r", "ry, r/my, ry=v", (e, [target, operand, index]) => {
    const value = e.read(operand);
    const first = e.and(e.read(index), e.int(255));
    const isInside = e.ltu(first, e.int(e.size));
    const mask = e.sub(e.shl(e.int(1), first, 64), e.int(1), 64);
    const result = e.select(isInside, e.and(value, mask), value);
    e.write(target, result);
    record(e, result, e.not1(isInside));
  }),
  row("MULX", "VEX.LZ.F2.0F38 F6 /r", "ry, ry=v, r/my", (e, [high, low, operand]) => {
    const a = e.read(operand);
    const b = e.reg(RDX, e.size);
    const product = e.mul(a, b, 64);
    const upper = e.size === 64 ? e.mulHigh(a, b, false) : e.shr(product, e.int(32));
    // The high half is what stays where both go to one register
    e.write(low, e.truncate(product, e.size));
    e.write(high, upper);
  }),
  gathering("PDEP", "F2", true),
  gathering("PEXT", "F3", false),
  row("RORX", "VEX.LZ.F2.0F3A F0 /r ib", "ry, r/my, imm8", (e, [target, operand, immediate]) => {
    const value = e.read(operand);
    const count = e.and(e.read(immediate), e.int(e.size - 1));
    const back = e.and(e.sub(e.int(e.size), count, 64), e.int(e.size - 1));
    e.write(target, e.or(e.shr(value, count), e.shl(value, back)));
  }),
  shift("SARX", "F3", (e, value, count) => e.sar(value, count)),
  shift("SHLX", "66", (e, value, count) => e.shl(value, count)),
  shift("SHRX", "F2", (e, value, count) => e.shr(value, count)),
];
