/** SSE3: duplicating moves, LDDQU, and floating-point operations within and across a register's lanes. */
import type { Emitter, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { type FloatType, PD, PS } from "./float-checks.ts";
import { ARITHMETIC, packedArithmetic } from "./sse-float.ts";
import { evenAndOdd } from "./ssse3.ts";
import { laneBytes, viaHelper } from "./vector-common.ts";
import { elementLanes } from "./vector-integer.ts";

type Semantics = (e: Emitter, operands: readonly FormOperand[]) => void;
function row(mnemonic: string, opcode: string, operands: string, semantics: Semantics): Instruction {
  return instruction(mnemonic, { source: sdm("2A", mnemonic), requires: ["sse"], forms: [form(opcode, operands)], semantics });
}

const duplicate = (mnemonic: string, opcode: string, source: string, lanes: readonly number[]): Instruction =>
  row(mnemonic, opcode, `xmm, ${source}`, (e, [dst, src]) => {
    if (source === "xmm/m128") e.checkAligned(src);
    const value = e.readVec(src);
    e.writeVec(dst, e.shuffle(value, value, lanes));
  });

/** The two types have prefixes of their own here. */
const TYPES = [
  [PS, "F2"],
  [PD, "66"],
] as const;

/** Sums or differences of neighbours, those of the destination below those of the source. */
const horizontal = (name: string, opcode: string, operation: "ADD" | "SUB"): Instruction[] =>
  TYPES.map(([type, prefix]) =>
    row(name + type.suffix, `${prefix} 0F ${opcode} /r`, "xmm, xmm/m128", (e, [dst, src]) => {
      e.checkAligned(src);
      const b = e.readVec(src);
      const [even, odd] = evenAndOdd(e, e.readVec(dst), b, 128, type.bits / 8);
      e.writeVec(dst, packedArithmetic(e, type, ARITHMETIC[operation], even, odd));
    }),
  );

/** Even lanes of `b` negated: what is added then is subtracted. */
function negateEven(e: Emitter, type: FloatType, b: Vec): Vec {
  const sign = 1n << BigInt(type.bits - 1);
  const signs = laneBytes(
    Array.from({ length: type.lanes }, (_, lane) => (lane % 2 === 0 ? sign : 0n)),
    type.bits / 8,
  );
  return e.vec("v128.xor", b, e.vecConst(signs));
}
const alternating = TYPES.map(([type, prefix]) =>
  row(`ADDSUB${type.suffix}`, `${prefix} 0F D0 /r`, "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    const a = e.readVec(dst);
    const onDoubt = (): Vec => viaHelper(e, a, b, "sseAddSubtract", type.bits, type.lanes);
    e.writeVec(dst, packedArithmetic(e, type, ARITHMETIC.ADD, a, negateEven(e, type, b), onDoubt));
  }),
);

export const sse3: readonly Instruction[] = [
  duplicate("MOVSLDUP", "F3 0F 12 /r", "xmm/m128", elementLanes(4, [0, 0, 2, 2])),
  duplicate("MOVSHDUP", "F3 0F 16 /r", "xmm/m128", elementLanes(4, [1, 1, 3, 3])),
  duplicate("MOVDDUP", "F2 0F 12 /r", "xmm/m64", elementLanes(8, [0, 0])),
  row("LDDQU", "F2 0F F0 /r", "xmm, m128", (e, [dst, src]) => {
    e.writeVec(dst, e.readVec(src));
  }),
  ...horizontal("HADD", "7C", "ADD"),
  ...horizontal("HSUB", "7D", "SUB"),
  ...alternating,
];
