/** AVX and AVX2 rows that have no SSE row to be derived from (vex.ts): broadcasts, moves between halves, permutations, tests. */
import type { Bool, Emitter, Int, Vec } from "../emitter.ts";
import type { FormOperand, Instruction } from "../instruction.ts";
import { maskOfBits } from "./sse4-integer.ts";
import { high64, low64, mergeLow, splatConst } from "./vector-common.ts";
import { elementLanes, knownFields, shuffleWords } from "./vector-integer.ts";
import { avxRow, bothLengths, chooseByBit, type Semantics, zeroByBit } from "./vector-rows.ts";
import { writeZeroing } from "./vex.ts";

// ---- Moves ----

/** VMOVSS, VMOVSD: loads clear the rest, moves between registers take it from the first source. */
function moveScalar(mnemonic: string, prefix: string, bits: 32 | 64): Instruction[] {
  const merge: Semantics = (e, [target, rest, low]) =>
    writeZeroing(e, target as FormOperand, mergeLow(e, e.readVec(low as FormOperand), e.readVec(rest as FormOperand), bits));
  const plain: Semantics = (e, [target, source]) => writeZeroing(e, target as FormOperand, e.readVec(source as FormOperand));
  return [
    avxRow(mnemonic, `VEX.LIG.${prefix}.0F 10 /r`, `xmm, m${bits}`, plain),
    avxRow(mnemonic, `VEX.LIG.${prefix}.0F 11 /r`, `m${bits}, xmm`, plain),
    avxRow(mnemonic, `VEX.LIG.${prefix}.0F 10 /r`, "xmm, xmm=v, xmm=rm", merge),
    avxRow(mnemonic, `VEX.LIG.${prefix}.0F 11 /r`, "xmm=rm, xmm=v, xmm", merge),
  ];
}

/** Sign bits of the elements of 256 bits. */
function moveMask(mnemonic: string, opcode: string, shape: "i8x16" | "i32x4" | "i64x2"): Instruction {
  const bitsEach = { i8x16: 16, i32x4: 4, i64x2: 2 }[shape];
  return avxRow(mnemonic, `VEX.256.${opcode}`, "r32, ymm=rm", (e, [target, source]) => {
    const [low, high] = e.readHalves(source as FormOperand);
    const bits = (half: Vec): Int => e.fromI32(e.scalar(`${shape}.bitmask`, half) as Bool);
    e.write(target as FormOperand, e.or(bits(low), e.shl(bits(high), e.int(bitsEach), 64)));
  });
}

const moves = [
  ...moveScalar("VMOVSS", "F3", 32),
  ...moveScalar("VMOVSD", "F2", 64),
  moveMask("VMOVMSKPS", "0F 50 /r", "i32x4"),
  moveMask("VMOVMSKPD", "66.0F 50 /r", "i64x2"),
  moveMask("VPMOVMSKB", "66.0F D7 /r", "i8x16"),
  avxRow("VZEROUPPER", "VEX.128.0F 77", "", (e) => e.zeroVectors("upper")),
  avxRow("VZEROALL", "VEX.256.0F 77", "", (e) => e.zeroVectors("all")),
];

// ---- Broadcasts, halves ----

const SHAPES = { 8: "i8x16", 16: "i16x8", 32: "i32x4", 64: "i64x2" } as const;
function broadcast(mnemonic: string, opcode: string, bits: 8 | 16 | 32 | 64, lengths: readonly string[]): Instruction[] {
  return lengths.map((length) => {
    const target = length === "128" ? "xmm" : "ymm";
    return avxRow(mnemonic, `VEX.${length}.66.0F38.W0 ${opcode} /r`, `${target}, xmm/m${bits}`, (e, [dst, src]) => {
      const element = e.read(src as FormOperand);
      const value = e.vec(`${SHAPES[bits]}.splat`, bits === 64 ? element : e.low32(element));
      e.writeHalves(dst as FormOperand, value, length === "128" ? splatConst(e, 0, 8) : value);
    });
  });
}
const broadcastHalf = (mnemonic: string, opcode: string): Instruction =>
  avxRow(mnemonic, `VEX.256.66.0F38.W0 ${opcode} /r`, "ymm, m128", (e, [dst, src]) => {
    const value = e.readVec(src as FormOperand);
    e.writeHalves(dst as FormOperand, value, value);
  });
const insertHalf = (mnemonic: string, opcode: string): Instruction =>
  avxRow(mnemonic, `VEX.256.66.0F3A.W0 ${opcode} /r ib`, "ymm, ymm=v, xmm/m128, imm8", (e, [dst, first, second, immediate]) => {
    const value = e.readVec(second as FormOperand);
    const [low, high] = e.readHalves(first as FormOperand);
    const number = e.read(immediate as FormOperand);
    e.writeHalves(dst as FormOperand, chooseByBit(e, number, 0, low, value), chooseByBit(e, number, 0, value, high));
  });
const extractHalf = (mnemonic: string, opcode: string): Instruction =>
  avxRow(mnemonic, `VEX.256.66.0F3A.W0 ${opcode} /r ib`, "xmm/m128, ymm, imm8", (e, [dst, src, immediate]) => {
    const [low, high] = e.readHalves(src as FormOperand);
    writeZeroing(e, dst as FormOperand, chooseByBit(e, e.read(immediate as FormOperand), 0, high, low));
  });
/** Each half of the result is one of the four of the sources, or zero. */
const permuteHalves = (mnemonic: string, opcode: string): Instruction =>
  avxRow(mnemonic, `VEX.256.66.0F3A.W0 ${opcode} /r ib`, "ymm, ymm=v, ymm/m256, imm8", (e, [dst, first, second, immediate]) => {
    const [c, d] = e.readHalves(second as FormOperand);
    const [a, b] = e.readHalves(first as FormOperand);
    const number = e.read(immediate as FormOperand);
    const choose = (from: number): Vec => {
      const chosen = chooseByBit(e, number, from + 1, chooseByBit(e, number, from, d, c), chooseByBit(e, number, from, b, a));
      return zeroByBit(e, number, from + 3, chosen);
    };
    e.writeHalves(dst as FormOperand, choose(0), choose(4));
  });

const halves = [
  ...broadcast("VBROADCASTSS", "18", 32, ["128", "256"]),
  ...broadcast("VBROADCASTSD", "19", 64, ["256"]),
  ...broadcast("VPBROADCASTB", "78", 8, ["128", "256"]),
  ...broadcast("VPBROADCASTW", "79", 16, ["128", "256"]),
  ...broadcast("VPBROADCASTD", "58", 32, ["128", "256"]),
  ...broadcast("VPBROADCASTQ", "59", 64, ["128", "256"]),
  broadcastHalf("VBROADCASTF128", "1A"),
  broadcastHalf("VBROADCASTI128", "5A"),
  insertHalf("VINSERTF128", "18"),
  insertHalf("VINSERTI128", "38"),
  extractHalf("VEXTRACTF128", "19"),
  extractHalf("VEXTRACTI128", "39"),
  permuteHalves("VPERM2F128", "06"),
  permuteHalves("VPERM2I128", "46"),
];

// ---- Permutations ----

/** Selectors of bytes from the low bits of each 32-bit lane, which say which 32 bits. */
function byteSelectors(e: Emitter, words: Vec, mask: number): Vec {
  const scaled = e.vec("i32x4.mul", e.vec("v128.and", words, splatConst(e, mask, 4)), splatConst(e, 0x0404_0404, 4));
  return e.vec("i32x4.add", scaled, splatConst(e, 0x0302_0100, 4));
}
/** Of two quadwords each: bit 1 of the control's decides. */
function selectQuadwords(e: Emitter, value: Vec, control: Vec): Vec {
  const chosen = e.vec("v128.and", e.vec("i64x2.shr_u", control, e.low32(e.int(1))), splatConst(e, 1, 8));
  const first = e.vec("i64x2.mul", chosen, splatConst(e, 0x0808_0808_0808_0808n, 8));
  return e.vec("i8x16.swizzle", value, e.vec("i8x16.add", first, splatConst(e, 0x0706_0504_0302_0100n, 8)));
}
/** Of two quadwords each: bits of the immediate decide, two for each half. */
function selectByImmediate(e: Emitter, value: Vec, immediate: Int, half: 0 | 1): Vec {
  const [low, high] = [e.shuffle(value, value, elementLanes(8, [0, 0])), e.shuffle(value, value, elementLanes(8, [1, 1]))];
  const chosen = [0, 1].map((lane) => chooseByBit(e, immediate, half * 2 + lane, high, low)) as [Vec, Vec];
  return e.shuffle(...chosen, elementLanes(8, [0, 3]));
}

/** VPERMQ, VPERMPD: four quadwords by the fields of the immediate. */
const permuteQuadwords = (mnemonic: string, opcode: string): Instruction =>
  avxRow(mnemonic, `VEX.256.66.0F3A.W1 ${opcode} /r ib`, "ymm, ymm/m256, imm8", (e, [dst, src, immediate]) => {
    const [low, high] = e.readHalves(src as FormOperand);
    const number = e.read(immediate as FormOperand);
    const fields = knownFields(e, number);
    if (fields !== undefined) {
      const pick = (from: number): Vec => e.shuffle(low, high, elementLanes(8, fields.slice(from, from + 2)));
      e.writeHalves(dst as FormOperand, pick(0), pick(2));
      return;
    }
    const quadwords = [low, high].flatMap((half) => [low64(e, half), high64(e, half)]);
    const choose = (from: number, which: readonly Int[]): Int =>
      e.select(e.bit(number, from), which[1] as Int, which[0] as Int);
    const picked = [0, 2, 4, 6].map((from) =>
      choose(from + 1, [choose(from, quadwords.slice(0, 2)), choose(from, quadwords.slice(2))]),
    );
    const pair = (a: Int, b: Int): Vec => e.lane("i64x2.replace_lane", 1, e.vec("i64x2.splat", a), b) as Vec;
    e.writeHalves(dst as FormOperand, pair(picked[0] as Int, picked[1] as Int), pair(picked[2] as Int, picked[3] as Int));
  });

/** VPERMD, VPERMPS: eight doublewords of the second source, by those of the first. */
const permuteDoublewords = (mnemonic: string, opcode: string): Instruction =>
  avxRow(mnemonic, `VEX.256.66.0F38.W0 ${opcode} /r`, "ymm, ymm=v, ymm/m256", (e, [dst, indices, src]) => {
    const [low, high] = e.readHalves(src as FormOperand);
    const picked = e.readHalves(indices as FormOperand).map((words) => {
      // A selector outside of a vector gives zero
      const selectors = byteSelectors(e, words, 7);
      const fromHigh = e.vec("i8x16.swizzle", high, e.vec("i8x16.sub", selectors, splatConst(e, 16, 1)));
      return e.vec("v128.or", e.vec("i8x16.swizzle", low, selectors), fromHigh);
    }) as [Vec, Vec];
    e.writeHalves(dst as FormOperand, ...picked);
  });

const TWO = "xmm, xmm/m128, imm8";
const THREE = "xmm, xmm=v, xmm/m128";
const permutations = [
  ...bothLengths("VPERMILPS", "66.0F3A.W0 04 /r ib", TWO, (e, [value], immediate) => shuffleWords(e, value as Vec, immediate)),
  ...bothLengths("VPERMILPD", "66.0F3A.W0 05 /r ib", TWO, (e, [value], immediate, half) =>
    selectByImmediate(e, value as Vec, immediate, half),
  ),
  ...bothLengths("VPERMILPS", "66.0F38.W0 0C /r", THREE, (e, [value, control]) =>
    e.vec("i8x16.swizzle", value as Vec, byteSelectors(e, control as Vec, 3)),
  ),
  ...bothLengths("VPERMILPD", "66.0F38.W0 0D /r", THREE, (e, [value, control]) =>
    selectQuadwords(e, value as Vec, control as Vec),
  ),
  ...bothLengths("VPBLENDD", "66.0F3A.W0 02 /r ib", `${THREE}, imm8`, (e, [a, b], immediate, half) =>
    e.vec("v128.bitselect", b as Vec, a as Vec, maskOfBits(e, e.shr(immediate, e.int(half * 4)), "i32x4")),
  ),
  permuteQuadwords("VPERMQ", "00"),
  permuteQuadwords("VPERMPD", "01"),
  permuteDoublewords("VPERMD", "36"),
  permuteDoublewords("VPERMPS", "16"),
];

// ---- Shifts by counts of their own ----

type Shift = "shl" | "shr_u" | "shr_s";
/** Lane by lane: WebAssembly shifts all lanes by one count. */
function shiftEach(e: Emitter, value: Vec, counts: Vec, kind: Shift, bits: 32 | 64): Vec {
  const shape = SHAPES[bits];
  const lanes = Array.from({ length: 128 / bits }, (_, lane) => lane);
  const element = (vector: Vec, lane: number): Int => {
    const raw = e.lane(`${shape}.extract_lane`, lane, vector);
    return bits === 64 ? (raw as Int) : e.fromI32(raw as Bool);
  };
  return lanes.reduce((result, lane) => {
    const [from, count] = [element(value, lane), element(counts, lane)];
    const isSmall = e.ltu(count, e.int(bits));
    let shifted: Int;
    if (kind === "shr_s") shifted = e.sar(from, e.select(isSmall, count, e.int(bits - 1)), bits);
    else {
      const moved = kind === "shl" ? e.shl(from, count, bits) : e.shr(from, count);
      shifted = e.select(isSmall, moved, e.int(0));
    }
    return e.lane(`${shape}.replace_lane`, lane, result, bits === 64 ? shifted : e.low32(shifted)) as Vec;
  }, value);
}
const variableShift = (mnemonic: string, opcode: string, kind: Shift, bits: 32 | 64): Instruction[] =>
  bothLengths(mnemonic, `66.0F38.${bits === 64 ? "W1" : "W0"} ${opcode} /r`, THREE, (e, [value, counts]) =>
    shiftEach(e, value as Vec, counts as Vec, kind, bits),
  );

const shifts = [
  ...variableShift("VPSLLVD", "47", "shl", 32),
  ...variableShift("VPSLLVQ", "47", "shl", 64),
  ...variableShift("VPSRLVD", "45", "shr_u", 32),
  ...variableShift("VPSRLVQ", "45", "shr_u", 64),
  ...variableShift("VPSRAVD", "46", "shr_s", 32),
];

// ---- Tests ----

/** ZF: no bit of `mask` is set in both; CF: none is set in the second alone. */
function recordTest(e: Emitter, a: readonly Vec[], b: readonly Vec[], mask: Vec | undefined): void {
  const isNothing = (operation: string): Int => {
    const parts = a.map((left, i) => {
      const found = e.vec(operation, b[i] as Vec, left);
      return mask === undefined ? found : e.vec("v128.and", found, mask);
    });
    const all = parts.reduce((x, y) => e.vec("v128.or", x, y));
    return e.toInt(e.not1(e.scalar("v128.any_true", all) as Bool));
  };
  const zero = isNothing("v128.and");
  e.recordComparison(e.or(e.shl(zero, e.int(6), 64), isNothing("v128.andnot")));
}
/** `signBits`: of elements of that size only signs count. */
function testRow(mnemonic: string, opcode: string, length: "128" | "256", signBits?: 32 | 64): Instruction {
  const operands = length === "128" ? "xmm, xmm/m128" : "ymm, ymm/m256";
  return avxRow(mnemonic, `VEX.${length}.66.0F38${opcode} /r`, operands, (e, [left, right]) => {
    const parts = (operand: FormOperand): readonly Vec[] => (length === "128" ? [e.readVec(operand)] : e.readHalves(operand));
    const b = parts(right as FormOperand);
    const a = parts(left as FormOperand);
    recordTest(e, a, b, signBits && splatConst(e, 1n << BigInt(signBits - 1), signBits / 8));
  });
}
const tests = [
  testRow("VPTEST", " 17", "256"),
  testRow("VTESTPS", ".W0 0E", "128", 32),
  testRow("VTESTPS", ".W0 0E", "256", 32),
  testRow("VTESTPD", ".W0 0F", "128", 64),
  testRow("VTESTPD", ".W0 0F", "256", 64),
];

export const avx: readonly Instruction[] = [...moves, ...halves, ...permutations, ...shifts, ...tests];
