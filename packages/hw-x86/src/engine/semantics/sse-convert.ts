/** Conversions of SSE and SSE2, with fast paths as in sse-float.ts. */
import type { Bool, Doubt, Emitter, F32, F64, Int, Vec } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";
import {
  anyLane,
  type FloatType,
  isDoubtfulResult,
  isNotTame,
  isPrecisionClear,
  isUnusual,
  PD,
  PS,
  replaceScalar,
  SD,
  SS,
  scalarOf,
  unsafeLanes,
  wildLanes,
  zeroLanes,
} from "./float-checks.ts";
import { enterMmx, fromHalves, fromLow, helperResult, low64, passOperands, splatConst, viaHelper } from "./vector-common.ts";

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

// ---- Between the two float formats ----

/** The low 64 bits in both halves. */
const LOW_TWICE = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7];

const floatToFloat = [
  row("CVTSS2SD", "F3 0F 5A /r", "xmm, xmm/m32", (e, [dst, src]) => {
    const b = e.readVec(src);
    const a = e.readVec(dst);
    const x = scalarOf(e, SS, b);
    const fast = replaceScalar(e, SD, a, e.scalar("f64.promote_f32", x));
    const doubts = e.knowsOf(b, "tame SS") ? [] : [isNotTame(e, SS, x)];
    const result = e.unless(doubts, fast, () => viaHelper(e, a, b, "sseConvertFloat", 32, 1));
    e.learnOf(b, "tame SS");
    e.learnOf(result, "tame SD");
    e.writeVec(dst, result);
  }),
  row("CVTSD2SS", "F2 0F 5A /r", "xmm, xmm/m64", (e, [dst, src]) => {
    const b = e.readVec(src);
    const a = e.readVec(dst);
    const x = scalarOf(e, SD, b);
    const narrow = e.scalar("f32.demote_f64", x);
    const wide = (): F64 => e.scalar("f64.promote_f32", narrow) as F64;
    const doubts: Doubt[] = [
      [() => isUnusual(e)],
      isDoubtfulResult(e, SS, narrow, [], () => e.scalar("f64.ne", x, wide()) as Bool),
      [() => isPrecisionClear(e), () => e.scalar("f64.ne", x, wide()) as Bool],
    ];
    const result = e.unless(doubts, replaceScalar(e, SS, a, narrow), () => viaHelper(e, a, b, "sseConvertFloat", 64, 1));
    e.learn("usual");
    e.learnOf(b, "tame SD");
    e.learnOf(result, "tame SS");
    e.writeVec(dst, result);
  }),
  row("CVTPS2PD", "NP 0F 5A /r", "xmm, xmm/m64", (e, [dst, src]) => {
    const b = e.readVec(src);
    // The upper half is not converted: it may be anything
    const low = e.shuffle(b, b, LOW_TWICE);
    const doubts: Doubt[] = e.knowsOf(b, "tame PS") ? [] : [[() => anyLane(e, wildLanes(e, PS, low))]];
    e.writeVec(
      dst,
      e.unless(doubts, e.vec("f64x2.promote_low_f32x4", b), () => viaHelper(e, b, b, "sseConvertFloat", 32, 2)),
    );
  }),
  row("CVTPD2PS", "66 0F 5A /r", "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    const narrow = e.vec("f32x4.demote_f64x2_zero", b);
    const wide = (): Vec => e.vec("f64x2.promote_low_f32x4", narrow);
    // The low lanes twice, so that the zeros above them are not taken for results
    const result = (): Vec => e.shuffle(narrow, narrow, LOW_TWICE);
    const differs = (): Vec => e.vec("f64x2.ne", wide(), b);
    const doubts: Doubt[] = [
      [() => isUnusual(e)],
      [
        () => anyLane(e, unsafeLanes(e, PS, result())),
        () =>
          e.or1(
            anyLane(e, differs()),
            anyLane(e, e.vec("v128.andnot", unsafeLanes(e, PS, result()), zeroLanes(e, PS, result()))),
          ),
      ],
      [() => isPrecisionClear(e), () => anyLane(e, differs())],
    ];
    const exact = (): Vec => fromLow(e, low64(e, viaHelper(e, b, b, "sseConvertFloat", 64, 2)));
    const value = e.unless(doubts, narrow, exact);
    e.learn("usual");
    e.writeVec(dst, value);
  }),
];

// ---- Integers to floats ----

/** |value| > 2^bits, so that the conversion may round. */
function isBeyond(e: Emitter, value: Int, bits: bigint): Bool {
  return e.not1(e.ltu(e.add(value, e.int(1n << bits), 64), e.int((1n << (bits + 1n)) + 1n)));
}

/** CVTSI2SS, CVTSI2SD. */
function fromInteger(type: FloatType): Instruction {
  const isSingle = type.bits === 32;
  return row(`CVTSI2${type.suffix}`, `${type.prefix} 0F 2A /r`, "xmm, r/my", (e, [dst, src]) => {
    const value = e.signExtend(e.read(src), e.size);
    const a = e.readVec(dst);
    const fast = replaceScalar(e, type, a, e.scalar(`f${type.bits}.convert_i64_s`, value));
    const isAlwaysExact = !isSingle && e.size === 32;
    const rounds = (): Bool => isBeyond(e, value, isSingle ? 24n : 53n);
    const doubts: Doubt[] = isAlwaysExact ? [] : [[rounds, () => e.or1(isUnusual(e), isPrecisionClear(e))]];
    const exact = (): Vec => viaHelper(e, a, fromHalves(e, value, value), "sseFromInteger", type.bits, 1, e.size);
    const result = e.unless(doubts, fast, exact);
    e.learnOf(result, type.tame);
    e.writeVec(dst, result);
  });
}

const integerToFloat = [
  fromInteger(SS),
  fromInteger(SD),
  row("CVTDQ2PS", "NP 0F 5B /r", "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    const fast = e.vec("f32x4.convert_i32x4_s", b);
    // 2^31 is what the largest integers are rounded to, and what comes back as the largest
    const differs = (): Vec => e.vec("i32x4.ne", e.vec("i32x4.trunc_sat_f32x4_s", fast), b);
    const isLargest = (): Vec => e.vec("f32x4.eq", fast, splatConst(e, LIMIT[32][32], 4));
    const doubts: Doubt[] = [[() => isUnusual(e)], [() => isPrecisionClear(e), () => anyLane(e, differs(), isLargest())]];
    const result = e.unless(doubts, fast, () => viaHelper(e, b, b, "sseFromInteger", 32, 4, 32));
    e.learn("usual");
    e.learnOf(result, "tame PS");
    e.writeVec(dst, result);
  }),
  row("CVTDQ2PD", "F3 0F E6 /r", "xmm, xmm/m64", (e, [dst, src]) => {
    const result = e.vec("f64x2.convert_low_i32x4_s", e.readVec(src));
    e.learnOf(result, "tame PD");
    e.writeVec(dst, result);
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

/** Doubts about a conversion to integers: `rounded` is `value` without a fraction. */
function isInexact(e: Emitter, differs: () => Bool): Doubt[] {
  return [[() => isUnusual(e)], [() => isPrecisionClear(e), differs]];
}

/** CVT(T)SS2SI and CVT(T)SD2SI. */
function toInteger(type: FloatType, truncates: boolean): Instruction {
  const { bits, prefix, suffix, source } = type;
  const name = `CVT${truncates ? "T" : ""}${suffix}2SI`;
  return row(name, `${prefix} 0F ${truncates ? "2C" : "2D"} /r`, `ry, ${source}`, (e, [dst, src]) => {
    const size = e.size === 64 ? 64 : 32;
    const b = e.readVec(src);
    const x = scalarOf(e, type, b);
    const rounded = e.scalar(`f${bits}.${truncates ? "trunc" : "nearest"}`, x) as F32 | F64;
    const limit = scalarOf(e, type, splatConst(e, LIMIT[bits][size], bits / 8));
    const fits = e.scalar(`f${bits}.lt`, e.scalar(`f${bits}.abs`, rounded), limit) as Bool;
    const doubts: Doubt[] = [[() => e.not1(fits)], ...isInexact(e, () => e.scalar(`f${bits}.ne`, rounded, x) as Bool)];
    const fast = e.scalar(`i64.trunc_sat_f${bits}_s`, rounded) as Int;
    const result = e.unless(doubts, fast, () => {
      passOperands(e, b, b);
      e.helper("sseToInteger", bits, 1, size, truncates ? 1 : 0);
      return low64(e, helperResult(e));
    });
    e.learn("usual");
    e.write(dst, e.truncate(result, size));
  });
}

/** Packed conversions. */
function packedToInteger(mnemonic: string, opcode: string, type: FloatType, truncates: boolean): Instruction {
  const { shape, bits } = type;
  return row(mnemonic, opcode, "xmm, xmm/m128", (e, [dst, src]) => {
    e.checkAligned(src);
    const b = e.readVec(src);
    const rounded = e.vec(`${shape}.${truncates ? "trunc" : "nearest"}`, b);
    const fits = e.vec(`${shape}.lt`, e.vec(`${shape}.abs`, rounded), splatConst(e, LIMIT[bits][32], bits / 8));
    const doubts: Doubt[] = [
      [() => e.not1(e.scalar(`${type.integers}.all_true`, fits) as Bool)],
      ...isInexact(e, () => anyLane(e, e.vec(`${shape}.ne`, rounded, b))),
    ];
    const fast = e.vec(bits === 32 ? "i32x4.trunc_sat_f32x4_s" : "i32x4.trunc_sat_f64x2_s_zero", rounded);
    const exact = (): Vec => viaHelper(e, b, b, "sseToInteger", bits, 128 / bits, 32, truncates ? 1 : 0);
    const result = e.unless(doubts, fast, exact);
    e.learn("usual");
    e.writeVec(dst, result);
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
  packedToInteger("CVTPS2DQ", "66 0F 5B /r", PS, false),
  packedToInteger("CVTTPS2DQ", "F3 0F 5B /r", PS, true),
  packedToInteger("CVTPD2DQ", "F2 0F E6 /r", PD, false),
  packedToInteger("CVTTPD2DQ", "66 0F E6 /r", PD, true),
  packedToMmx("CVTPS2PI", "NP 0F 2D /r", 32, false),
  packedToMmx("CVTTPS2PI", "NP 0F 2C /r", 32, true),
  packedToMmx("CVTPD2PI", "66 0F 2D /r", 64, false),
  packedToMmx("CVTTPD2PI", "66 0F 2C /r", 64, true),
];

export const sseConvert: readonly Instruction[] = [...floatToFloat, ...integerToFloat, ...floatToInteger];
