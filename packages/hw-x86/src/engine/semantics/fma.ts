/**
 * FMA: a * b + c, rounded once. WebAssembly computes it where fused-code.ts vouches for the result; all else goes to the exact helper,
 * as in sse-float.ts.
 */
import type { Bool, Doubt, Emitter, Vec } from "../emitter.ts";
import { ADDEND } from "../fpu/sse.ts";
import type { FormOperand, Instruction } from "../instruction.ts";
import { anyLane, FLOAT_TYPES, type FloatType, isUnusual, replaceScalar, scalarOf } from "./float-checks.ts";
import { helperResult, high64, laneBytes, low64, passOperands } from "./vector-common.ts";
import { avxRow } from "./vector-rows.ts";
import { writeZeroing } from "./vex.ts";

/** Bit 0 negates products, bits 1 and 2 the addends of even and odd lanes. */
interface Operation {
  readonly name: string;
  /** Lower half of the opcode, of packed types; scalars come next. */
  readonly opcode: number;
  readonly signs: number;
  readonly packedOnly?: true;
}
const OPERATIONS: readonly Operation[] = [
  { name: "FMADDSUB", opcode: 0x6, signs: 2, packedOnly: true },
  { name: "FMSUBADD", opcode: 0x7, signs: 4, packedOnly: true },
  { name: "FMADD", opcode: 0x8, signs: 0 },
  { name: "FMSUB", opcode: 0xa, signs: 6 },
  { name: "FNMADD", opcode: 0xc, signs: 1 },
  { name: "FNMSUB", opcode: 0xe, signs: 7 },
];
/** Which operands are multiplied and which is added: 1 the destination, 2 VEX.vvvv, 3 the last. */
const ORDERS = [
  { digits: "132", high: 0x90 },
  { digits: "213", high: 0xa0 },
  { digits: "231", high: 0xb0 },
] as const;
/** Multiplicand, multiplier, addend by their places among the operands. The multiplicand is the one whose NaN comes first. */
const ROLES = { "132": [0, 2, 1], "213": [1, 0, 2], "231": [1, 2, 0] } as const;

/** The vector with signs changed in even and in odd lanes. */
function negate(e: Emitter, type: FloatType, value: Vec, even: boolean, odd: boolean): Vec {
  if (!even && !odd) return value;
  const sign = 1n << BigInt(type.bits - 1);
  const signs = Array.from({ length: 128 / type.bits }, (_, lane) => (((lane & 1) === 0 ? even : odd) ? sign : 0n));
  return e.vec("v128.xor", value, e.vecConst(laneBytes(signs, type.bits / 8)));
}

function compute(e: Emitter, type: FloatType, signs: number, [a, b, c]: readonly [Vec, Vec, Vec], destination: Vec): Vec {
  const product = negate(e, type, a, (signs & 1) !== 0, (signs & 1) !== 0);
  const addend = negate(e, type, c, (signs & 2) !== 0, (signs & 4) !== 0);
  const overDestination = (result: Vec): Vec =>
    type.packed ? result : replaceScalar(e, type, destination, scalarOf(e, type, result));
  const fused = e.fusedMultiplyAdd(type.bits, type.lanes, product, b, addend);
  const isDoubtful = (): Bool => {
    if (type.packed) return anyLane(e, e.vec(`${type.shape}.ne`, fused, fused));
    const x = scalarOf(e, type, fused);
    return e.scalar(`f${type.bits}.ne`, x, x) as Bool;
  };
  const doubts: Doubt[] = [[() => isUnusual(e)], [isDoubtful]];
  const result = e.unless(doubts, overDestination(fused), () => {
    passOperands(e, a, b);
    e.setState(ADDEND, 64, low64(e, c));
    e.setState(ADDEND + 8, 64, high64(e, c));
    e.helper("sseFused", type.bits, type.lanes, signs);
    return overDestination(helperResult(e));
  });
  e.learn("usual");
  for (const operand of [a, b, c, result]) e.learnOf(operand, type.tame);
  return result;
}

function row(type: FloatType, operation: Operation, { digits, high }: (typeof ORDERS)[number]): Instruction[] {
  const opcode = (high | operation.opcode | (type.packed ? 0 : 1)).toString(16).toUpperCase();
  const encoding = `66.0F38.W${type.bits === 64 ? 1 : 0} ${opcode} /r`;
  const mnemonic = `V${operation.name}${digits}${type.suffix}`;
  const roles = ROLES[digits];
  const lower = avxRow(
    mnemonic,
    `VEX.${type.packed ? "128" : "LIG"}.${encoding}`,
    `xmm, xmm=v, ${type.source}`,
    (e, operands) => {
      const last = e.readVec(operands[2] as FormOperand);
      const values = [e.readVec(operands[0] as FormOperand), e.readVec(operands[1] as FormOperand), last];
      const [a, b, c] = roles.map((role) => values[role]) as [Vec, Vec, Vec];
      writeZeroing(e, operands[0] as FormOperand, compute(e, type, operation.signs, [a, b, c], values[0] as Vec));
    },
  );
  if (!type.packed) return [lower];
  const whole = avxRow(mnemonic, `VEX.256.${encoding}`, "ymm, ymm=v, ymm/m256", (e, operands) => {
    const last = e.readHalves(operands[2] as FormOperand);
    const pairs = [e.readHalves(operands[0] as FormOperand), e.readHalves(operands[1] as FormOperand), last];
    const halves = e.inHalves((half) => {
      const [a, b, c] = roles.map((role) => pairs[role]?.[half]) as [Vec, Vec, Vec];
      return compute(e, type, operation.signs, [a, b, c], pairs[0]?.[half] as Vec);
    });
    e.writeHalves(operands[0] as FormOperand, ...halves);
  });
  return [lower, whole];
}

export const fma: readonly Instruction[] = OPERATIONS.flatMap((operation) =>
  ORDERS.flatMap((order) =>
    FLOAT_TYPES.filter(({ packed }) => packed || !operation.packedOnly).flatMap((type) => row(type, operation, order)),
  ),
);
