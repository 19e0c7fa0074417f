/** Conversions of SSE and SSE2, with the fast paths of sse-float.ts where scalars make them worth it. */
import type { Bool, Emitter, F32, F64, Int, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { FLOAT_TYPES, type FloatType, inAllLanes, isOrdinary, isPlain, isSafeResult } from "./sse-float.ts";
import {
  either,
  enterMmx,
  fromHalves,
  fromLow,
  helperResult,
  low64,
  mergeLow,
  passOperands,
  splatConst,
} from "./vector-common.ts";

type Requirement = "sse" | "mmx";
function row(
  mnemonic: string,
  opcode: string,
  operands: string,
  semantics: (e: Emitter, operands: readonly FormOperand[]) => void,
  requires: readonly Requirement[] = ["sse"],
): Instruction {
  return instruction(mnemonic, { source: sdm("2A", mnemonic), requires, forms: [form(opcode, operands)], semantics });
}

const [, SS, , SD] = FLOAT_TYPES as readonly [FloatType, FloatType, FloatType, FloatType];

/** Calls the helper with `source`, over `destination`, and takes its result. */
function viaHelper(e: Emitter, destination: Vec, source: Vec, helper: string, ...args: number[]): Vec {
  passOperands(e, destination, source);
  e.helper(helper, ...args);
  return helperResult(e);
}

// ---- Between the two float formats ----

const floatToFloat = [
  row("CVTSS2SD", "F3 0F 5A /r", "xmm, xmm/m32", (e, [dst, src]) => {
    const b = e.readVec(src);
    const a = e.readVec(dst);
    const fast = mergeLow(e, e.vec("f64x2.promote_low_f32x4", b), a, 64);
    const good = inAllLanes(e, SS, isOrdinary(e, SS, b));
    e.writeVec(
      dst,
      either(e, good, fast, () => viaHelper(e, a, b, "sseConvertFloat", 32, 1)),
    );
  }),
  row("CVTSD2SS", "F2 0F 5A /r", "xmm, xmm/m64", (e, [dst, src]) => {
    const b = e.readVec(src);
    const a = e.readVec(dst);
    const narrow = e.vec("f32x4.demote_f64x2_zero", b);
    const zero = e.vec("f64x2.eq", b, splatConst(e, 0, 8));
    const fits = e.or1(inAllLanes(e, SS, isSafeResult(e, SS, narrow)), inAllLanes(e, SD, zero));
    e.writeVec(
      dst,
      either(e, e.and1(isPlain(e), fits), mergeLow(e, narrow, a, 32), () => viaHelper(e, a, b, "sseConvertFloat", 64, 1)),
    );
  }),
  row("CVTPS2PD", "NP 0F 5A /r", "xmm, xmm/m64", (e, [dst, src]) => {
    const b = e.readVec(src);
    e.writeVec(dst, viaHelper(e, b, b, "sseConvertFloat", 32, 2));
  }),
  row("CVTPD2PS", "66 0F 5A /r", "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    e.writeVec(dst, fromLow(e, low64(e, viaHelper(e, b, b, "sseConvertFloat", 64, 2))));
  }),
];

// ---- Integers to floats ----

/** |value| <= 2^bits, so that the conversion is exact. */
function isWithin(e: Emitter, value: Int, bits: bigint): Bool {
  return e.ltu(e.add(value, e.int(1n << bits), 64), e.int((1n << (bits + 1n)) + 1n));
}

/** CVTSI2SS, CVTSI2SD. */
function fromInteger(type: FloatType): Instruction {
  const isSingle = type.bits === 32;
  return row(`CVTSI2${type.suffix}`, `${type.prefix} 0F 2A /r`, "xmm, r/my", (e, [dst, src]) => {
    const value = e.signExtend(e.read(src), e.size);
    const a = e.readVec(dst);
    const converted = e.scalar(`f${type.bits}.convert_i64_s`, value) as F32 | F64;
    const fast = e.lane(`${type.shape}.replace_lane`, 0, a, converted) as Vec;
    const good = !isSingle && e.size === 32 ? e.bool(true) : e.or1(isPlain(e), isWithin(e, value, isSingle ? 24n : 53n));
    e.writeVec(
      dst,
      either(e, good, fast, () => viaHelper(e, a, fromHalves(e, value, value), "sseFromInteger", type.bits, 1, e.size)),
    );
  });
}

const integerToFloat = [
  fromInteger(SS),
  fromInteger(SD),
  row("CVTDQ2PS", "NP 0F 5B /r", "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    const fast = e.vec("f32x4.convert_i32x4_s", b);
    e.writeVec(
      dst,
      either(e, isPlain(e), fast, () => viaHelper(e, b, b, "sseFromInteger", 32, 4, 32)),
    );
  }),
  row("CVTDQ2PD", "F3 0F E6 /r", "xmm, xmm/m64", (e, [dst, src]) => {
    e.writeVec(dst, e.vec("f64x2.convert_low_i32x4_s", e.readVec(src)));
  }),
  row(
    "CVTPI2PS",
    "NP 0F 2A /r",
    "xmm, mm/m64",
    (e, [dst, src]) => {
      const b = e.readVec(src);
      const result = viaHelper(e, e.readVec(dst), b, "sseFromInteger", 32, 2, 32);
      enterMmx(e);
      e.writeVec(dst, result);
    },
    ["sse", "mmx"],
  ),
  row(
    "CVTPI2PD",
    "66 0F 2A /r",
    "xmm, mm=rm",
    (e, [dst, src]) => {
      const result = e.vec("f64x2.convert_low_i32x4_s", e.readVec(src));
      enterMmx(e);
      e.writeVec(dst, result);
    },
    ["sse", "mmx"],
  ),
  // From memory it leaves the x87 unit alone.
  row("CVTPI2PD", "66 0F 2A /r", "xmm, m64", (e, [dst, src]) => {
    e.writeVec(dst, e.vec("f64x2.convert_low_i32x4_s", e.readVec(src)));
  }),
];

// ---- Floats to integers ----

/** 2^31 and 2^63 in each format: conversions of smaller magnitudes fit. */
const LIMIT = {
  32: { 32: 0x4f00_0000n, 64: 0x5f00_0000n },
  64: { 32: 0x41e0_0000_0000_0000n, 64: 0x43e0_0000_0000_0000n },
} as const;

/**
 * CVT(T)SS2SI and CVT(T)SD2SI. Fast for magnitudes that fit after rounding, when the result is exact or PE is set already;
 * the rounding form needs rounding to nearest too, which `isPlain` covers.
 */
function toInteger(type: FloatType, truncates: boolean): Instruction {
  const name = `CVT${truncates ? "T" : ""}${type.suffix}2SI`;
  return row(name, `${type.prefix} 0F ${truncates ? "2C" : "2D"} /r`, `ry, ${type.source}`, (e, [dst, src]) => {
    const size = e.size === 64 ? 64 : 32;
    const b = e.readVec(src);
    const rounded = truncates ? e.vec(`${type.shape}.trunc`, b) : e.vec(`${type.shape}.nearest`, b);
    const limit = splatConst(e, LIMIT[type.bits][size], type.bits / 8);
    const fits = e.vec(`${type.shape}.lt`, e.vec(`${type.shape}.abs`, rounded), limit);
    const isExact = e.vec(`${type.shape}.eq`, rounded, b);
    const good = e.and1(inAllLanes(e, type, fits), e.or1(inAllLanes(e, type, isExact), isPlain(e)));
    const scalar = e.lane(`${type.shape}.extract_lane`, 0, rounded) as F32 | F64;
    const fast = e.scalar(`i64.trunc_sat_f${type.bits}_s`, scalar) as Int;
    const result = e.variable("i64", fast);
    e.if(e.not1(good), () => {
      passOperands(e, b, b);
      e.helper("sseToInteger", type.bits, 1, size, truncates ? 1 : 0);
      result.set(low64(e, helperResult(e)));
    });
    e.write(dst, e.truncate(result.get(), size));
  });
}

/** Packed conversions. */
function packedToInteger(mnemonic: string, opcode: string, bits: 32 | 64, truncates: boolean): Instruction {
  return row(mnemonic, opcode, "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    e.writeVec(dst, viaHelper(e, b, b, "sseToInteger", bits, 128 / bits, 32, truncates ? 1 : 0));
  });
}
function packedToMmx(mnemonic: string, opcode: string, bits: 32 | 64, truncates: boolean): Instruction {
  const operands = bits === 32 ? "mm, xmm/m64" : "mm, xmm/m128";
  return row(
    mnemonic,
    opcode,
    operands,
    (e, [dst, src]) => {
      if (bits === 64) e.checkAligned(src);
      const b = e.readVec(src);
      // Processors switch to MMX state before the conversion can raise #XM.
      enterMmx(e);
      e.writeVec(dst, viaHelper(e, b, b, "sseToInteger", bits, 2, 32, truncates ? 1 : 0));
    },
    ["sse", "mmx"],
  );
}

const floatToInteger = [
  toInteger(SS, true),
  toInteger(SS, false),
  toInteger(SD, true),
  toInteger(SD, false),
  packedToInteger("CVTPS2DQ", "66 0F 5B /r", 32, false),
  packedToInteger("CVTTPS2DQ", "F3 0F 5B /r", 32, true),
  packedToInteger("CVTPD2DQ", "F2 0F E6 /r", 64, false),
  packedToInteger("CVTTPD2DQ", "66 0F E6 /r", 64, true),
  packedToMmx("CVTPS2PI", "NP 0F 2D /r", 32, false),
  packedToMmx("CVTTPS2PI", "NP 0F 2C /r", 32, true),
  packedToMmx("CVTPD2PI", "66 0F 2D /r", 64, false),
  packedToMmx("CVTTPD2PI", "66 0F 2C /r", 64, true),
];

export const sseConvert: readonly Instruction[] = [...floatToFloat, ...integerToFloat, ...floatToInteger];
