/** SSSE3: integer rows in MMX and 128-bit forms, as vector-integer.ts has those of SSE2. */
import type { Emitter, Int, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { enterMmx, splatConst } from "./vector-common.ts";
import { type Binary, binary, elementLanes, LOW_HALVES, type Width } from "./vector-integer.ts";

/** Elements of a and b in order, told apart into even and odd ones: what the horizontal operations take two by two. */
export function evenAndOdd(e: Emitter, a: Vec, b: Vec, width: Width, elementBytes: number): [Vec, Vec] {
  const both = width === 64 ? e.shuffle(a, b, LOW_HALVES) : undefined;
  const count = 16 / elementBytes;
  const pick = (first: number): Vec => {
    const elements = Array.from({ length: count }, (_, i) => first + 2 * i);
    if (both === undefined) return e.shuffle(a, b, elementLanes(elementBytes, elements));
    return e.shuffle(
      both,
      both,
      elementLanes(
        elementBytes,
        elements.map((element) => element % count),
      ),
    );
  };
  return [pick(0), pick(1)];
}
const horizontal =
  (name: string, elementBytes: number): Binary =>
  (e, a, b, width) =>
    e.vec(name, ...evenAndOdd(e, a, b, width, elementBytes));

/** Products of unsigned bytes of a with signed ones of b, added two by two with saturation. */
const multiplyAddBytes: Binary = (e, a, b) => {
  const product = (half: "low" | "high"): Vec =>
    e.vec("i16x8.mul", e.vec(`i16x8.extend_${half}_i8x16_u`, a), e.vec(`i16x8.extend_${half}_i8x16_s`, b));
  return e.vec("i16x8.add_sat_s", ...evenAndOdd(e, product("low"), product("high"), 128, 2));
};

/** WebAssembly saturates the one product that the processor lets wrap, of the least numbers. */
const multiplyRound: Binary = (e, a, b) => {
  const least = splatConst(e, 0x8000, 2);
  const wraps = e.vec("v128.and", e.vec("i16x8.eq", a, least), e.vec("i16x8.eq", b, least));
  return e.vec("v128.xor", e.vec("i16x8.q15mulr_sat_s", a, b), wraps);
};

const sign =
  (shape: string): Binary =>
  (e, a, b) => {
    const zero = splatConst(e, 0, 8);
    const negated = e.vec("v128.bitselect", e.vec(`${shape}.neg`, a), a, e.vec(`${shape}.lt_s`, b, zero));
    return e.vec("v128.andnot", negated, e.vec(`${shape}.eq`, b, zero));
  };

/** Bytes of a by the low bits of those of b, zero where the top bit is set: beyond what swizzle selects. */
const shuffleBytes: Binary = (e, a, b, width) =>
  e.vec("i8x16.swizzle", a, e.vec("v128.and", b, splatConst(e, width === 64 ? 0x87 : 0x8f, 1)));

const IOTA = Array.from({ length: 16 }, (_, i) => i);
/** a above b, shifted right by whole bytes. */
function align(e: Emitter, a: Vec, b: Vec, width: Width, distance: Int): Vec {
  const bytes = width / 8;
  const [low, high] = width === 64 ? [e.shuffle(b, a, LOW_HALVES), splatConst(e, 0, 8)] : [b, a];
  const known = e.valueOf(distance);
  if (known !== undefined) {
    const start = Math.min(Number(known & 0xffn), 2 * bytes);
    const zeros = splatConst(e, 0, 8);
    if (start >= 16)
      return e.shuffle(
        high,
        zeros,
        IOTA.map((lane) => lane + start - 16),
      );
    return e.shuffle(
      low,
      high,
      IOTA.map((lane) => lane + start),
    );
  }
  const capped = e.and(distance, e.int(0xff));
  const start = e.low32(e.select(e.ltu(capped, e.int(32)), capped, e.int(32)));
  const selectors = e.vec("i8x16.add", e.vecConst(IOTA), e.vec("i8x16.splat", start));
  const fromLow = e.vec("i8x16.swizzle", low, selectors);
  const fromHigh = e.vec("i8x16.swizzle", high, e.vec("i8x16.sub", selectors, splatConst(e, 16, 1)));
  return e.vec("v128.or", fromLow, fromHigh);
}

function alignRow(width: Width, prefix: string, operands: string): Instruction {
  return instruction("PALIGNR", {
    source: sdm("2B", "PALIGNR - Packed Align Right"),
    requires: [width === 64 ? "mmx" : "sse"],
    forms: [form(`${prefix} 0F 3A 0F /r ib`, operands)],
    semantics(e, [dst, src, immediate]: readonly FormOperand[]) {
      if (width === 128) e.checkAligned(src);
      const b = e.readVec(src);
      const result = align(e, e.readVec(dst), b, width, e.read(immediate));
      if (width === 64) enterMmx(e);
      e.writeVec(dst, result);
    },
  });
}

const absolute = (mnemonic: string, opcode: string, shape: string): Instruction[] =>
  binary(mnemonic, opcode, (e, _a, b) => e.vec(`${shape}.abs`, b));

export const ssse3: readonly Instruction[] = [
  ...binary("PSHUFB", "38 00", shuffleBytes),
  ...binary("PHADDW", "38 01", horizontal("i16x8.add", 2)),
  ...binary("PHADDD", "38 02", horizontal("i32x4.add", 4)),
  ...binary("PHADDSW", "38 03", horizontal("i16x8.add_sat_s", 2)),
  ...binary("PMADDUBSW", "38 04", multiplyAddBytes),
  ...binary("PHSUBW", "38 05", horizontal("i16x8.sub", 2)),
  ...binary("PHSUBD", "38 06", horizontal("i32x4.sub", 4)),
  ...binary("PHSUBSW", "38 07", horizontal("i16x8.sub_sat_s", 2)),
  ...binary("PSIGNB", "38 08", sign("i8x16")),
  ...binary("PSIGNW", "38 09", sign("i16x8")),
  ...binary("PSIGND", "38 0A", sign("i32x4")),
  ...binary("PMULHRSW", "38 0B", multiplyRound),
  ...absolute("PABSB", "38 1C", "i8x16"),
  ...absolute("PABSW", "38 1D", "i16x8"),
  ...absolute("PABSD", "38 1E", "i32x4"),
  alignRow(64, "NP", "mm, mm/m64, imm8"),
  alignRow(128, "66", "xmm, xmm/m128, imm8"),
];
