/** F16C: conversions between half and single precision. */
import type { Bool, Emitter, Vec } from "../emitter.ts";
import type { FormOperand, Instruction } from "../instruction.ts";
import { anyLane } from "./float-checks.ts";
import { splatConst, viaHelper } from "./vector-common.ts";
import { LOW_HALVES } from "./vector-integer.ts";
import { avxRow } from "./vector-rows.ts";
import { writeZeroing } from "./vex.ts";

const UPPER_TWICE = [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];
/** 2^112: from the bias of half precision to that of single precision. */
const REBIASED = 0x7780_0000;
const INFINITY = 0x7f80_0000;

/**
 * The four numbers in the lower half. Moved to their places in a single and rebiased by a multiplication, which is exact and normalizes
 * denormals; infinities and NaNs keep the largest exponent. Signalling NaNs are the helper's.
 */
function toSingles(e: Emitter, source: Vec): Vec {
  const words = e.vec("i32x4.extend_low_i16x8_u", source);
  const magnitude = e.vec("i32x4.shl", e.vec("v128.and", words, splatConst(e, 0x7fff, 4)), e.low32(e.int(13)));
  const sign = e.vec("i32x4.shl", e.vec("v128.and", words, splatConst(e, 0x8000, 4)), e.low32(e.int(16)));
  const isSpecial = e.vec("i32x4.gt_u", magnitude, splatConst(e, 0x0f7f_ffff, 4));
  const rebiased = e.vec("f32x4.mul", magnitude, splatConst(e, REBIASED, 4));
  const exponent = e.vec("v128.and", isSpecial, splatConst(e, INFINITY, 4));
  const fast = e.vec("v128.or", e.vec("v128.or", rebiased, exponent), sign);
  const isNan = (): Bool => anyLane(e, e.vec("i32x4.gt_u", magnitude, splatConst(e, 0x0f80_0000, 4)));
  return e.unless([[isNan]], fast, () => viaHelper(e, source, source, "sseFromHalf", 4));
}
/** A store that faults sets no flag. */
function probeStore(e: Emitter, target: FormOperand): void {
  if (!e.isMemory(target)) return;
  const address = e.address(target);
  e.probeStoreDefault(address, 64);
  if (e.sizeOf(target) === 128) e.probeStoreDefault(e.and(e.add(address, e.int(8), 64), e.addressMask()), 64);
}
const fromSingles = (e: Emitter, source: Vec, control: Bool): Vec => viaHelper(e, source, source, "sseToHalf", 4, control);

export const halfPrecision: readonly Instruction[] = [
  avxRow("VCVTPH2PS", "VEX.128.66.0F38.W0 13 /r", "xmm, xmm/m64", (e, [dst, src]) => {
    writeZeroing(e, dst as FormOperand, toSingles(e, e.readVec(src as FormOperand)));
  }),
  avxRow("VCVTPH2PS", "VEX.256.66.0F38.W0 13 /r", "ymm, xmm/m128", (e, [dst, src]) => {
    const source = e.readVec(src as FormOperand);
    const halves = e.inHalves((half) => toSingles(e, half === 0 ? source : e.shuffle(source, source, UPPER_TWICE)));
    e.writeHalves(dst as FormOperand, ...halves);
  }),
  avxRow(
    "VCVTPS2PH",
    "VEX.128.66.0F3A.W0 1D /r ib",
    "xmm/m64, xmm, imm8",
    (e, [dst, src, immediate]) => {
      probeStore(e, dst as FormOperand);
      const control = e.low32(e.read(immediate as FormOperand));
      writeZeroing(e, dst as FormOperand, fromSingles(e, e.readVec(src as FormOperand), control));
    },
    "noTranslate",
  ),
  avxRow(
    "VCVTPS2PH",
    "VEX.256.66.0F3A.W0 1D /r ib",
    "xmm/m128, ymm, imm8",
    (e, [dst, src, immediate]) => {
      probeStore(e, dst as FormOperand);
      const control = e.low32(e.read(immediate as FormOperand));
      const pair = e.readHalves(src as FormOperand);
      const [low, high] = e.inHalves((half) => fromSingles(e, pair[half], control));
      writeZeroing(e, dst as FormOperand, e.shuffle(low, high, LOW_HALVES));
    },
    "noTranslate",
  ),
];
