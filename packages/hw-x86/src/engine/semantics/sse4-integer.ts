import type { Bool, Emitter, Int, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { fromLow, laneBytes, low64, viaHelper } from "./vector-common.ts";
import { type Binary, wide } from "./vector-integer.ts";

type Semantics = (e: Emitter, operands: readonly FormOperand[]) => void;
function row(mnemonic: string, opcode: string, operands: string, semantics: Semantics): Instruction {
  return instruction(mnemonic, { source: sdm("2B", mnemonic), requires: ["sse"], forms: [form(opcode, operands)], semantics });
}
const direct = (mnemonic: string, opcode: string, name: string): Instruction =>
  wide(mnemonic, `66 0F 38 ${opcode} /r`, (e, a, b) => e.vec(name, a, b));

const lanewise = [
  direct("PCMPEQQ", "29", "i64x2.eq"),
  direct("PACKUSDW", "2B", "i16x8.narrow_i32x4_u"),
  direct("PCMPGTQ", "37", "i64x2.gt_s"),
  direct("PMINSB", "38", "i8x16.min_s"),
  direct("PMINSD", "39", "i32x4.min_s"),
  direct("PMINUW", "3A", "i16x8.min_u"),
  direct("PMINUD", "3B", "i32x4.min_u"),
  direct("PMAXSB", "3C", "i8x16.max_s"),
  direct("PMAXSD", "3D", "i32x4.max_s"),
  direct("PMAXUW", "3E", "i16x8.max_u"),
  direct("PMAXUD", "3F", "i32x4.max_u"),
  direct("PMULLD", "40", "i32x4.mul"),
];

/** Doublewords 0 and 2 in the lower half. */
const EVEN_WORDS = [0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11];
const multiplyEven: Binary = (e, a, b) =>
  e.vec("i64x2.extmul_low_i32x4_s", e.shuffle(a, a, EVEN_WORDS), e.shuffle(b, b, EVEN_WORDS));

// ---- Widening moves ----

const SHAPES: Readonly<Record<number, string>> = { 8: "i8x16", 16: "i16x8", 32: "i32x4", 64: "i64x2" };
/** The lowest lanes of `from` bits as lanes of `to` bits. */
export function widen(e: Emitter, source: Vec, from: number, to: number, sign: "s" | "u"): Vec {
  let value = source;
  for (let bits = from; bits < to; bits *= 2) value = e.vec(`${SHAPES[bits * 2]}.extend_low_${SHAPES[bits]}_${sign}`, value);
  return value;
}
const WIDENINGS = [
  ["BW", 8, 16],
  ["BD", 8, 32],
  ["BQ", 8, 64],
  ["WD", 16, 32],
  ["WQ", 16, 64],
  ["DQ", 32, 64],
] as const;
const widenings = (["S", "Z"] as const).flatMap((kind) =>
  WIDENINGS.map(([name, from, to], i) =>
    row(`PMOV${kind}X${name}`, `66 0F 38 ${kind === "S" ? 2 : 3}${i} /r`, `xmm, xmm/m${(128 * from) / to}`, (e, [dst, src]) => {
      const isRead = src.view?.value !== undefined || !e.isMemory(src);
      const source = isRead ? e.readVec(src) : fromLow(e, e.read(src));
      e.writeVec(dst, widen(e, source, from, to, kind === "S" ? "s" : "u"));
    }),
  ),
);

// ---- Blends and tests ----

/** Lanes of `shape` that are all ones where the immediate's bit of their number is set. */
export function maskOfBits(e: Emitter, immediate: Int, shape: "i16x8" | "i32x4" | "i64x2"): Vec {
  const bytes = shape === "i16x8" ? 2 : shape === "i32x4" ? 4 : 8;
  const bits = Array.from({ length: 16 / bytes }, (_, i) => 1n << BigInt(i));
  const known = e.valueOf(immediate);
  if (known !== undefined)
    return e.vecConst(
      laneBytes(
        bits.map((bit) => ((known & bit) !== 0n ? -1n : 0n)),
        bytes,
      ),
    );
  const chosen = e.vecConst(laneBytes(bits, bytes));
  const value = e.vec(`${shape}.splat`, bytes === 8 ? immediate : e.low32(immediate));
  return e.vec(`${shape}.eq`, e.vec("v128.and", value, chosen), chosen);
}
function blendByImmediate(mnemonic: string, opcode: string, shape: "i16x8" | "i32x4" | "i64x2"): Instruction {
  return row(mnemonic, `66 0F 3A ${opcode} /r ib`, "xmm, xmm/m128, imm8", (e, [dst, src, immediate]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    e.writeVec(dst, e.vec("v128.bitselect", b, e.readVec(dst), maskOfBits(e, e.read(immediate), shape)));
  });
}
/** By the top bits of XMM0's lanes. */
function blendByMask(mnemonic: string, opcode: string, bits: 8 | 32 | 64): Instruction {
  return row(mnemonic, `66 0F 38 ${opcode} /r`, "xmm, xmm/m128, XMM0", (e, [dst, src, mask]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    const lanes = e.vec(`${SHAPES[bits]}.shr_s`, e.readVec(mask), e.low32(e.int(bits - 1)));
    e.writeVec(dst, e.vec("v128.bitselect", b, e.readVec(dst), lanes));
  });
}
const isNothing = (e: Emitter, vector: Vec): Bool => e.not1(e.scalar("v128.any_true", vector) as Bool);

const blends = [
  blendByImmediate("BLENDPS", "0C", "i32x4"),
  blendByImmediate("BLENDPD", "0D", "i64x2"),
  blendByImmediate("PBLENDW", "0E", "i16x8"),
  blendByMask("PBLENDVB", "10", 8),
  blendByMask("BLENDVPS", "14", 32),
  blendByMask("BLENDVPD", "15", 64),
  row("PTEST", "66 0F 38 17 /r", "xmm, xmm/m128", (e, [left, right]) => {
    e.checkAligned(right);
    const b = e.readVec(right);
    const a = e.readVec(left);
    const zero = e.toInt(isNothing(e, e.vec("v128.and", b, a)));
    const carry = e.toInt(isNothing(e, e.vec("v128.andnot", b, a)));
    e.recordComparison(e.or(e.shl(zero, e.int(6), 64), carry));
  }),
];

// ---- Single elements ----

const IOTA = Array.from({ length: 16 }, (_, i) => i);
/** Element `number` in the low bits, with others above it unless the number is known. */
function extract(e: Emitter, vector: Vec, number: Int, bytes: number): Int {
  const known = e.valueOf(number);
  if (known !== undefined) {
    const lane = Number(known);
    if (bytes === 8) return e.lane("i64x2.extract_lane", lane, vector) as Int;
    const name = bytes === 4 ? "i32x4.extract_lane" : `${SHAPES[bytes * 8]}.extract_lane_u`;
    return e.fromI32(e.lane(name, lane, vector) as Bool);
  }
  const first = e.low32(e.shl(number, e.int(Math.log2(bytes)), 64));
  const selectors = e.vec("i8x16.add", e.vecConst(IOTA), e.vec("i8x16.splat", first));
  const low = low64(e, e.vec("i8x16.swizzle", vector, selectors));
  return e.truncate(low, (bytes * 8) as 8 | 16 | 32 | 64);
}
function insert(e: Emitter, vector: Vec, number: Int, value: Int, bytes: number): Vec {
  const shape = SHAPES[bytes * 8];
  const element = bytes === 8 ? value : e.low32(value);
  const known = e.valueOf(number);
  if (known !== undefined) return e.lane(`${shape}.replace_lane`, Number(known), vector, element) as Vec;
  const numbers = e.vecConst(laneBytes(IOTA.slice(0, 16 / bytes), bytes));
  const isLane = e.vec(`${shape}.eq`, numbers, e.vec(`${shape}.splat`, bytes === 8 ? number : e.low32(number)));
  return e.vec("v128.bitselect", e.vec(`${shape}.splat`, element), vector, isLane);
}
function extraction(mnemonic: string, opcode: string, target: string, bytes: (e: Emitter) => number): Instruction {
  return row(mnemonic, `66 0F 3A ${opcode} /r ib`, `${target}, xmm, imm8`, (e, [dst, src, immediate]) => {
    const number = e.and(e.read(immediate), e.int(16 / bytes(e) - 1));
    e.write(dst, extract(e, e.readVec(src), number, bytes(e)));
  });
}
function insertion(mnemonic: string, opcode: string, source: string, bytes: (e: Emitter) => number): Instruction {
  return row(mnemonic, `66 0F 3A ${opcode} /r ib`, `xmm, ${source}, imm8`, (e, [dst, src, immediate]) => {
    const value = e.read(src);
    const number = e.and(e.read(immediate), e.int(16 / bytes(e) - 1));
    e.writeVec(dst, insert(e, e.readVec(dst), number, value, bytes(e)));
  });
}
const operandBytes = (e: Emitter): number => e.size / 8;

const elements = [
  extraction("PEXTRB", "14", "r32/m8", () => 1),
  extraction("PEXTRW", "15", "r32/m16", () => 2),
  extraction("PEXTRD/PEXTRQ", "16", "r/my", operandBytes),
  extraction("EXTRACTPS", "17", "r/m32", () => 4),
  insertion("PINSRB", "20", "r32/m8", () => 1),
  insertion("PINSRD/PINSRQ", "22", "r/my", operandBytes),
  row("INSERTPS", "66 0F 3A 21 /r ib", "xmm, xmm/m32, imm8", (e, [dst, src, immediate]) => {
    const control = e.read(immediate);
    const field = (shift: number): Int => e.and(e.shr(control, e.int(shift)), e.int(3));
    const element = e.isMemory(src) ? e.read(src) : extract(e, e.readVec(src), field(6), 4);
    const inserted = insert(e, e.readVec(dst), field(4), element, 4);
    e.writeVec(dst, e.vec("v128.andnot", inserted, maskOfBits(e, e.and(control, e.int(15)), "i32x4")));
  }),
];

const others = [
  wide("PMULDQ", "66 0F 38 28 /r", multiplyEven),
  wide("PHMINPOSUW", "66 0F 38 41 /r", (e, a, b) => viaHelper(e, a, b, "leastWord")),
  row("MPSADBW", "66 0F 3A 42 /r ib", "xmm, xmm/m128, imm8", (e, [dst, src, immediate]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    e.writeVec(dst, viaHelper(e, e.readVec(dst), b, "sumsOfDifferences", e.low32(e.read(immediate))));
  }),
  row("MOVNTDQA", "66 0F 38 2A /r", "xmm, m128", (e, [dst, src]) => {
    e.checkAligned(src);
    e.writeVec(dst, e.readVec(src));
  }),
];

export const sse4Integer: readonly Instruction[] = [...lanewise, ...widenings, ...blends, ...elements, ...others];
