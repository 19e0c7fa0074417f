/** What rows of VEX-encoded vector instructions share that no SSE row has: lengths, and choices between vectors. */
import type { Bool, Emitter, Int, Vec } from "../emitter.ts";
import { type Attribute, type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { splatConst } from "./vector-common.ts";
import { writeZeroing } from "./vex.ts";

export type Semantics = (e: Emitter, operands: readonly FormOperand[]) => void;

/** A row of one form. */
export function avxRow(
  mnemonic: string,
  opcode: string,
  operands: string,
  semantics: Semantics,
  ...attributes: readonly Attribute[]
): Instruction {
  return instruction(mnemonic, {
    source: sdm("2", mnemonic),
    requires: ["avx"],
    forms: [form(opcode, operands, ...attributes)],
    semantics,
  });
}

/** What becomes of 128 bits: `sources` are the operands behind the destination, less an immediate; `half` is which half it is. */
export type HalfOperation = (e: Emitter, sources: readonly Vec[], immediate: Int, half: 0 | 1) => Vec;

/**
 * Rows of 128 and of 256 bits whose halves are computed apart. `opcode` begins behind the length: "66.0F38.W0 0C /r"; operands are those
 * of 128 bits.
 */
export function bothLengths(mnemonic: string, opcode: string, operands: string, operation: HalfOperation): Instruction[] {
  const semantics =
    (isWhole: boolean): Semantics =>
    (e, [target, ...others]) => {
      const last = others[others.length - 1] as FormOperand;
      const hasImmediate = last.text === "imm8";
      const sources = hasImmediate ? others.slice(0, -1) : others;
      const immediate = hasImmediate ? e.read(last) : e.int(0);
      const destination = target as FormOperand;
      if (!isWhole) {
        const values = sources.map((operand) => e.readVec(operand));
        writeZeroing(e, destination, operation(e, values, immediate, 0));
        return;
      }
      const pairs = sources.map((operand) => e.readHalves(operand));
      const halves = e.inHalves((half) =>
        operation(
          e,
          pairs.map((pair) => pair[half]),
          immediate,
          half,
        ),
      );
      e.writeHalves(destination, ...halves);
    };
  const wide = operands.replaceAll("xmm", "ymm").replaceAll("m128", "m256");
  return [
    avxRow(mnemonic, `VEX.128.${opcode}`, operands, semantics(false)),
    avxRow(mnemonic, `VEX.256.${opcode}`, wide, semantics(true)),
  ];
}

/** All ones where the condition holds. */
export function maskOf(e: Emitter, condition: Bool): Vec {
  return e.vec("i64x2.splat", e.select(condition, e.int(-1), e.int(0)));
}
/** One of two vectors; bit `index` of a number decides. */
export function chooseByBit(e: Emitter, number: Int, index: number, whenSet: Vec, whenClear: Vec): Vec {
  const known = e.valueOf(number);
  if (known !== undefined) return ((known >> BigInt(index)) & 1n) !== 0n ? whenSet : whenClear;
  return e.vec("v128.bitselect", whenSet, whenClear, maskOf(e, e.bit(number, index)));
}
/** Zero where bit `index` of a number is set. */
export function zeroByBit(e: Emitter, number: Int, index: number, value: Vec): Vec {
  return chooseByBit(e, number, index, splatConst(e, 0, 8), value);
}
