/** Loads and stores of chosen elements, and gathers: each element is an access of its own, which helpers make (masked-helpers.ts). */
import { OPERAND_ADDRESS } from "../fpu/x87-state.ts";
import type { FormOperand, Instruction } from "../instruction.ts";
import { avxRow } from "./vector-rows.ts";

/** `loadOpcode`, `storeOpcode` behind the length. */
function masked(mnemonic: string, loadOpcode: string, storeOpcode: string, bits: 32 | 64): Instruction[] {
  return (["128", "256"] as const).flatMap((length) => {
    const register = length === "128" ? "xmm" : "ymm";
    const helper =
      (name: "maskedLoad" | "maskedStore", memory: number): Parameters<typeof avxRow>[3] =>
      (e, operands) => {
        e.setState(OPERAND_ADDRESS, 64, e.address(operands[memory] as FormOperand));
        e.helper(name, bits / 8, Number(length) / 8);
      };
    const [load, store] = [loadOpcode, storeOpcode].map((opcode) => `VEX.${length}.66.0F38.${opcode} /r`) as [string, string];
    return [
      avxRow(mnemonic, load, `${register}, ${register}=v, m${length}`, helper("maskedLoad", 2), "noTranslate"),
      avxRow(mnemonic, store, `m${length}, ${register}=v, ${register}`, helper("maskedStore", 0), "noTranslate"),
    ];
  });
}

const GATHERS = [
  ["VPGATHERDD", "90", 32, 32],
  ["VPGATHERDQ", "90", 32, 64],
  ["VPGATHERQD", "91", 64, 32],
  ["VPGATHERQQ", "91", 64, 64],
  ["VGATHERDPS", "92", 32, 32],
  ["VGATHERDPD", "92", 32, 64],
  ["VGATHERQPS", "93", 64, 32],
  ["VGATHERQPD", "93", 64, 64],
] as const;
const gathers = GATHERS.flatMap(([mnemonic, opcode, indexBits, elementBits]) =>
  ([128, 256] as const).map((length) => {
    const count = length / Math.max(indexBits, elementBits);
    const register = count * elementBits > 128 ? "ymm" : "xmm";
    const indices = `vm${indexBits}${count * indexBits > 128 ? "y" : "x"}`;
    return avxRow(
      mnemonic,
      `VEX.${length}.66.0F38.${elementBits === 64 ? "W1" : "W0"} ${opcode} /r`,
      `${register}, ${indices}, ${register}=v`,
      (e) => {
        e.helper("gather", elementBits / 8, indexBits / 8, count);
      },
      "noTranslate",
    );
  }),
);

export const maskedMoves: readonly Instruction[] = [
  ...masked("VMASKMOVPS", "W0 2C", "W0 2E", 32),
  ...masked("VMASKMOVPD", "W0 2D", "W0 2F", 64),
  ...masked("VPMASKMOVD", "W0 8C", "W0 8E", 32),
  ...masked("VPMASKMOVQ", "W1 8C", "W1 8E", 64),
  ...gathers,
];
