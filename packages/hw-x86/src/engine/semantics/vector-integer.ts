/**
 * Integer vector rows, each in its MMX form on 64 bits and its SSE2 form on 128. The MMX form computes in the lower half of a
 * vector whose upper half is zero; where that makes a difference the operation is told the width.
 */
import type { Emitter, Int, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { enterMmx, fromHalves, high64, laneBytes, low64, passOperands, splatConst } from "./vector-common.ts";

export type Width = 64 | 128;
export type Binary = (e: Emitter, a: Vec, b: Vec, width: Width) => Vec;

/** Reads source then destination, computes, writes the destination. */
function apply(e: Emitter, [dst, src]: readonly FormOperand[], width: Width, operation: Binary): void {
  if (width === 128) e.checkAligned(src);
  const b = e.readVec(src);
  const result = operation(e, e.readVec(dst), b, width);
  if (width === 64) enterMmx(e);
  e.writeVec(dst, result);
}

export function binary(mnemonic: string, opcode: string, operation: Binary, mmxMemory = "m64"): Instruction[] {
  const source = sdm("2B", mnemonic);
  return [
    instruction(mnemonic, {
      source,
      requires: ["mmx"],
      forms: [form(`NP 0F ${opcode} /r`, `mm, mm/${mmxMemory}`)],
      semantics: (e, operands) => apply(e, operands, 64, operation),
    }),
    wide(mnemonic, `66 0F ${opcode} /r`, operation),
  ];
}
export function wide(mnemonic: string, opcode: string, operation: Binary): Instruction {
  return instruction(mnemonic, {
    source: sdm("2B", mnemonic),
    requires: ["sse"],
    forms: [form(opcode, "xmm, xmm/m128")],
    semantics: (e, operands) => apply(e, operands, 128, operation),
  });
}

/** A row that is one WebAssembly instruction. */
const direct = (mnemonic: string, opcode: string, name: string): Instruction[] =>
  binary(mnemonic, opcode, (e, a, b) => e.vec(name, a, b));

const lanewise = [
  ...direct("PADDB", "FC", "i8x16.add"),
  ...direct("PADDW", "FD", "i16x8.add"),
  ...direct("PADDD", "FE", "i32x4.add"),
  ...direct("PADDQ", "D4", "i64x2.add"),
  ...direct("PADDSB", "EC", "i8x16.add_sat_s"),
  ...direct("PADDSW", "ED", "i16x8.add_sat_s"),
  ...direct("PADDUSB", "DC", "i8x16.add_sat_u"),
  ...direct("PADDUSW", "DD", "i16x8.add_sat_u"),
  ...direct("PSUBB", "F8", "i8x16.sub"),
  ...direct("PSUBW", "F9", "i16x8.sub"),
  ...direct("PSUBD", "FA", "i32x4.sub"),
  ...direct("PSUBQ", "FB", "i64x2.sub"),
  ...direct("PSUBSB", "E8", "i8x16.sub_sat_s"),
  ...direct("PSUBSW", "E9", "i16x8.sub_sat_s"),
  ...direct("PSUBUSB", "D8", "i8x16.sub_sat_u"),
  ...direct("PSUBUSW", "D9", "i16x8.sub_sat_u"),
  ...direct("PMULLW", "D5", "i16x8.mul"),
  ...direct("PMADDWD", "F5", "i32x4.dot_i16x8_s"),
  ...direct("PAVGB", "E0", "i8x16.avgr_u"),
  ...direct("PAVGW", "E3", "i16x8.avgr_u"),
  ...direct("PMINUB", "DA", "i8x16.min_u"),
  ...direct("PMAXUB", "DE", "i8x16.max_u"),
  ...direct("PMINSW", "EA", "i16x8.min_s"),
  ...direct("PMAXSW", "EE", "i16x8.max_s"),
  ...direct("PCMPEQB", "74", "i8x16.eq"),
  ...direct("PCMPEQW", "75", "i16x8.eq"),
  ...direct("PCMPEQD", "76", "i32x4.eq"),
  ...direct("PCMPGTB", "64", "i8x16.gt_s"),
  ...direct("PCMPGTW", "65", "i16x8.gt_s"),
  ...direct("PCMPGTD", "66", "i32x4.gt_s"),
  ...direct("PAND", "DB", "v128.and"),
  ...direct("POR", "EB", "v128.or"),
  ...direct("PXOR", "EF", "v128.xor"),
  ...binary("PANDN", "DF", (e, a, b) => e.vec("v128.andnot", b, a)),
];

/** Upper halves of the 32-bit products of 16-bit lanes. */
const UPPER_HALVES = [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31];
const mulHigh =
  (sign: "s" | "u"): Binary =>
  (e, a, b) =>
    e.shuffle(e.vec(`i32x4.extmul_low_i16x8_${sign}`, a, b), e.vec(`i32x4.extmul_high_i16x8_${sign}`, a, b), UPPER_HALVES);
/** 32-bit lanes 0 and 2 in the lower half. */
const EVEN_WORDS = [0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11];

const products = [
  ...binary("PMULHW", "E5", mulHigh("s")),
  ...binary("PMULHUW", "E4", mulHigh("u")),
  ...binary("PMULUDQ", "F4", (e, a, b) =>
    e.vec("i64x2.extmul_low_i32x4_u", e.shuffle(a, a, EVEN_WORDS), e.shuffle(b, b, EVEN_WORDS)),
  ),
  ...binary("PSADBW", "F6", (e, a, b) => {
    const difference = e.vec("v128.or", e.vec("i8x16.sub_sat_u", a, b), e.vec("i8x16.sub_sat_u", b, a));
    const sums = e.vec("i32x4.extadd_pairwise_i16x8_u", e.vec("i16x8.extadd_pairwise_i8x16_u", difference));
    const even = e.vec("v128.and", sums, splatConst(e, 0xffff_ffff, 8));
    return e.vec("i64x2.add", even, e.vec("i64x2.shr_u", sums, e.low32(e.int(32))));
  }),
];

/** Lanes of a and b in turn, from byte `start` of each. */
function interleaved(elementBytes: number, start: number): number[] {
  const lanes: number[] = [];
  for (let at = start; lanes.length < 16; at += elementBytes) {
    for (const base of [0, 16]) for (let i = 0; i < elementBytes; i++) lanes.push(base + ((at + i) & 15));
  }
  return lanes;
}
/** The low 64-bit halves of a and b. */
export const LOW_HALVES = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];

function pack(name: string): Binary {
  return (e, a, b, width) => {
    if (width === 128) return e.vec(name, a, b);
    const both = e.shuffle(a, b, LOW_HALVES);
    return e.vec(name, both, both);
  };
}
const unpackLow =
  (elementBytes: number): Binary =>
  (e, a, b) =>
    e.shuffle(a, b, interleaved(elementBytes, 0));
const unpackHigh =
  (elementBytes: number): Binary =>
  (e, a, b, width) =>
    e.shuffle(a, b, interleaved(elementBytes, width / 16));

const rearranged = [
  ...binary("PACKSSWB", "63", pack("i8x16.narrow_i16x8_s")),
  ...binary("PACKSSDW", "6B", pack("i16x8.narrow_i32x4_s")),
  ...binary("PACKUSWB", "67", pack("i8x16.narrow_i16x8_u")),
  ...binary("PUNPCKLBW", "60", unpackLow(1), "m32"),
  ...binary("PUNPCKLWD", "61", unpackLow(2), "m32"),
  ...binary("PUNPCKLDQ", "62", unpackLow(4), "m32"),
  wide("PUNPCKLQDQ", "66 0F 6C /r", unpackLow(8)),
  ...binary("PUNPCKHBW", "68", unpackHigh(1)),
  ...binary("PUNPCKHWD", "69", unpackHigh(2)),
  ...binary("PUNPCKHDQ", "6A", unpackHigh(4)),
  wide("PUNPCKHQDQ", "66 0F 6D /r", unpackHigh(8)),
];

type Shift = "shl" | "shr_u" | "shr_s";
const SHAPES: Readonly<Record<number, string>> = { 16: "i16x8", 32: "i32x4", 64: "i64x2" };

/** Counts of the lane size and more give zero, or the sign for arithmetic shifts. */
function shifted(e: Emitter, a: Vec, count: Int, kind: Shift, laneBits: number): Vec {
  const known = e.valueOf(count);
  if (known !== undefined) {
    const isAll = known >= laneBits;
    if (isAll && kind !== "shr_s") return splatConst(e, 0, 8);
    return e.vec(`${SHAPES[laneBits]}.${kind}`, a, e.low32(e.int(isAll ? laneBits - 1 : known)));
  }
  const isSmall = e.ltu(count, e.int(laneBits));
  if (kind === "shr_s") {
    return e.vec(`${SHAPES[laneBits]}.shr_s`, a, e.low32(e.select(isSmall, count, e.int(laneBits - 1))));
  }
  const result = e.vec(`${SHAPES[laneBits]}.${kind}`, a, e.low32(count));
  return e.vec("v128.and", result, e.vec("i64x2.splat", e.select(isSmall, e.int(-1), e.int(0))));
}

/** Shift by the low 64 bits of the source, and by an immediate. */
function shiftRows(name: string, opcode: string, immediateOpcode: string, kind: Shift, laneBits: number): Instruction[] {
  const source = sdm("2B", name);
  const byImmediate = (width: Width) => (e: Emitter, operands: readonly FormOperand[]) => {
    const [dst, count] = operands;
    const result = shifted(e, e.readVec(dst), e.and(e.read(count), e.int(0xff)), kind, laneBits);
    if (width === 64) enterMmx(e);
    e.writeVec(dst, result);
  };
  return [
    ...binary(name, opcode, (e, a, b) => shifted(e, a, low64(e, b), kind, laneBits)),
    instruction(name, {
      source,
      requires: ["mmx"],
      forms: [form(`NP 0F ${immediateOpcode} ib`, "mm=rm, imm8")],
      semantics: byImmediate(64),
    }),
    instruction(name, {
      source,
      requires: ["sse"],
      forms: [form(`66 0F ${immediateOpcode} ib`, "xmm=rm, imm8")],
      semantics: byImmediate(128),
    }),
  ];
}

const IOTA = Array.from({ length: 16 }, (_, i) => i);

/** PSLLDQ, PSRLDQ: whole bytes, by selecting lanes; a selector outside 0 to 15 gives zero. */
function byteShift(mnemonic: string, digit: number, operation: "i8x16.add" | "i8x16.sub"): Instruction {
  return instruction(mnemonic, {
    source: sdm("2B", mnemonic),
    requires: ["sse"],
    forms: [form(`66 0F 73 /${digit} ib`, "xmm=rm, imm8")],
    semantics(e, [dst, count]) {
      const bytes = e.and(e.read(count), e.int(0xff));
      const known = e.valueOf(bytes);
      if (known !== undefined) {
        const distance = Math.min(Number(known), 16);
        // Lanes of the register between zeros, from `distance` below or above
        const lanes = IOTA.map((lane) => (operation === "i8x16.add" ? lane + distance : lane + 16 - distance));
        const [zeros, value] = [splatConst(e, 0, 8), e.readVec(dst)];
        e.writeVec(dst, operation === "i8x16.add" ? e.shuffle(value, zeros, lanes) : e.shuffle(zeros, value, lanes));
        return;
      }
      const capped = e.select(e.ltu(bytes, e.int(16)), bytes, e.int(16));
      const selectors = e.vec(operation, e.vecConst(IOTA), e.vec("i8x16.splat", e.low32(capped)));
      e.writeVec(dst, e.vec("i8x16.swizzle", e.readVec(dst), selectors));
    },
  });
}

const shifts = [
  ...shiftRows("PSLLW", "F1", "71 /6", "shl", 16),
  ...shiftRows("PSLLD", "F2", "72 /6", "shl", 32),
  ...shiftRows("PSLLQ", "F3", "73 /6", "shl", 64),
  ...shiftRows("PSRLW", "D1", "71 /2", "shr_u", 16),
  ...shiftRows("PSRLD", "D2", "72 /2", "shr_u", 32),
  ...shiftRows("PSRLQ", "D3", "73 /2", "shr_u", 64),
  ...shiftRows("PSRAW", "E1", "71 /4", "shr_s", 16),
  ...shiftRows("PSRAD", "E2", "72 /4", "shr_s", 32),
  byteShift("PSLLDQ", 7, "i8x16.sub"),
  byteShift("PSRLDQ", 3, "i8x16.add"),
];

/** Lane selectors (0 to 3) from the four 2-bit fields of an immediate, one in each lane of `shape`, from lane 0 on. */
function selectorFields(e: Emitter, immediate: Int, shape: "i16x8" | "i32x4"): Vec {
  const bytes = shape === "i16x8" ? 2 : 4;
  const spread = e.vecConst(laneBytes(bytes === 2 ? [64, 16, 4, 1, 64, 16, 4, 1] : [64, 16, 4, 1], bytes));
  const product = e.vec(`${shape}.mul`, e.vec(`${shape}.splat`, e.low32(e.and(immediate, e.int(0xff)))), spread);
  return e.vec("v128.and", e.vec(`${shape}.shr_u`, product, e.low32(e.int(6))), splatConst(e, 3, bytes));
}
/** Byte selectors for swizzle from element selectors. */
function byteSelectors(e: Emitter, fields: Vec, shape: "i16x8" | "i32x4"): Vec {
  const bytes = shape === "i16x8" ? 2 : 4;
  const scale = splatConst(e, bytes === 2 ? 0x0202 : 0x0404_0404, bytes);
  return e.vec(`${shape}.add`, e.vec(`${shape}.mul`, fields, scale), splatConst(e, bytes === 2 ? 0x0100 : 0x0302_0100, bytes));
}
/** The four 2-bit fields of an immediate that is known while emitting. */
export function knownFields(e: Emitter, immediate: Int): number[] | undefined {
  const known = e.valueOf(immediate);
  return known === undefined ? undefined : [0, 2, 4, 6].map((shift) => Number((known >> BigInt(shift)) & 3n));
}
/** Bytes of elements by number, for a shuffle. */
export function elementLanes(elementBytes: number, elements: readonly number[]): number[] {
  return elements.flatMap((element) => Array.from({ length: elementBytes }, (_, i) => element * elementBytes + i));
}
/** Four 32-bit lanes of `a` as the immediate's fields say. */
export function shuffleWords(e: Emitter, a: Vec, immediate: Int): Vec {
  const fields = knownFields(e, immediate);
  if (fields !== undefined) return e.shuffle(a, a, elementLanes(4, fields));
  return e.vec("i8x16.swizzle", a, byteSelectors(e, selectorFields(e, immediate, "i32x4"), "i32x4"));
}

function shuffleRow(
  mnemonic: string,
  prefix: string,
  operands: string,
  operation: (e: Emitter, a: Vec, immediate: Int) => Vec,
) {
  const isMmx = prefix === "NP";
  return instruction(mnemonic, {
    source: sdm("2B", mnemonic),
    requires: [isMmx ? "mmx" : "sse"],
    forms: [form(`${prefix} 0F 70 /r ib`, operands)],
    semantics(e, [dst, src, immediate]) {
      if (!isMmx) e.checkAligned(src);
      const result = operation(e, e.readVec(src), e.read(immediate));
      if (isMmx) enterMmx(e);
      e.writeVec(dst, result);
    },
  });
}
/** The four 16-bit lanes of the lower half as the fields say; the upper half of the result is of no use. */
function shuffleLowHalf(e: Emitter, a: Vec, immediate: Int): Vec {
  return e.vec("i8x16.swizzle", a, byteSelectors(e, selectorFields(e, immediate, "i16x8"), "i16x8"));
}
const SWAPPED_HALVES = [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7];

const shuffles = [
  shuffleRow("PSHUFD", "66", "xmm, xmm/m128, imm8", shuffleWords),
  shuffleRow("PSHUFW", "NP", "mm, mm/m64, imm8", shuffleLowHalf),
  shuffleRow("PSHUFLW", "F2", "xmm, xmm/m128, imm8", (e, a, immediate) => {
    const fields = knownFields(e, immediate);
    if (fields !== undefined) return e.shuffle(a, a, elementLanes(2, [...fields, 4, 5, 6, 7]));
    return fromHalves(e, low64(e, shuffleLowHalf(e, a, immediate)), high64(e, a));
  }),
  shuffleRow("PSHUFHW", "F3", "xmm, xmm/m128, imm8", (e, a, immediate) => {
    const fields = knownFields(e, immediate);
    if (fields !== undefined) return e.shuffle(a, a, elementLanes(2, [0, 1, 2, 3, ...fields.map((field) => field + 4)]));
    return fromHalves(e, low64(e, a), low64(e, shuffleLowHalf(e, e.shuffle(a, a, SWAPPED_HALVES), immediate)));
  }),
];

/** PINSRW, PEXTRW, PMOVMSKB, masked stores: one row for each width. */
function perWidth(build: (width: Width, prefix: string, register: string) => Instruction): Instruction[] {
  return [build(64, "NP", "mm"), build(128, "66", "xmm")];
}
const requirement = (width: Width): readonly ("mmx" | "sse")[] => [width === 64 ? "mmx" : "sse"];

const elements = [
  ...perWidth((width, prefix, register) =>
    instruction("PINSRW", {
      source: sdm("2B", "PINSRW - Insert Word"),
      requires: requirement(width),
      forms: [form(`${prefix} 0F C4 /r ib`, `${register}, r32/m16, imm8`)],
      semantics(e, [dst, src, immediate]) {
        const word = e.low32(e.read(src));
        const lane = e.and(e.read(immediate), e.int(width / 16 - 1));
        const known = e.valueOf(lane);
        if (known !== undefined) {
          const replaced = e.lane("i16x8.replace_lane", Number(known), e.readVec(dst), word) as Vec;
          if (width === 64) enterMmx(e);
          e.writeVec(dst, replaced);
          return;
        }
        const value = e.vec("i16x8.splat", word);
        const isLane = e.vec(
          "i16x8.eq",
          e.vecConst(laneBytes([0, 1, 2, 3, 4, 5, 6, 7], 2)),
          e.vec("i16x8.splat", e.low32(lane)),
        );
        const result = e.vec("v128.bitselect", value, e.readVec(dst), isLane);
        if (width === 64) enterMmx(e);
        e.writeVec(dst, result);
      },
    }),
  ),
  ...perWidth((width, prefix, register) =>
    instruction("PEXTRW", {
      source: sdm("2B", "PEXTRW - Extract Word"),
      requires: requirement(width),
      forms: [form(`${prefix} 0F C5 /r ib`, `r32, ${register}=rm, imm8`)],
      semantics(e, [dst, src, immediate]) {
        const number = e.and(e.read(immediate), e.int(width / 16 - 1));
        const known = e.valueOf(number);
        if (known !== undefined) {
          const word = e.lane("i16x8.extract_lane_u", Number(known), e.readVec(src)) as ReturnType<Emitter["bool"]>;
          if (width === 64) enterMmx(e);
          e.write(dst, e.fromI32(word));
          return;
        }
        const lane = e.low32(number);
        const selectors = e.vec(
          "i16x8.add",
          e.vec("i16x8.mul", e.vec("i16x8.splat", lane), splatConst(e, 0x0202, 2)),
          splatConst(e, 0x0100, 2),
        );
        const chosen = e.vec("i8x16.swizzle", e.readVec(src), selectors);
        if (width === 64) enterMmx(e);
        e.write(dst, e.truncate(low64(e, chosen), 16));
      },
    }),
  ),
  ...perWidth((width, prefix, register) =>
    instruction("PMOVMSKB", {
      source: sdm("2B", "PMOVMSKB - Move Byte Mask"),
      requires: requirement(width),
      forms: [form(`${prefix} 0F D7 /r`, `r32, ${register}=rm`)],
      semantics(e, [dst, src]) {
        const mask = e.fromI32(e.scalar("i8x16.bitmask", e.readVec(src)) as ReturnType<Emitter["bool"]>);
        if (width === 64) enterMmx(e);
        e.write(dst, e.and(mask, e.int(width === 64 ? 0xff : 0xffff)));
      },
    }),
  ),
  ...perWidth((width, prefix, register) =>
    instruction(width === 64 ? "MASKMOVQ" : "MASKMOVDQU", {
      source: sdm("2B", width === 64 ? "MASKMOVQ - Store Selected Bytes of Quadword" : "MASKMOVDQU - Store Selected Bytes"),
      requires: requirement(width),
      forms: [form(`${prefix} 0F F7 /r`, `${register}, ${register}=rm`)],
      semantics(e, [value, mask]) {
        passOperands(e, e.readVec(value), e.readVec(mask));
        if (width === 64) e.helper("beginMmxStore", 1);
        e.helper("sseMaskedStore", width / 8);
        if (width === 64) enterMmx(e);
      },
    }),
  ),
];

export const vectorInteger: readonly Instruction[] = [
  ...lanewise,
  ...products,
  ...rearranged,
  ...shifts,
  ...shuffles,
  ...elements,
];
