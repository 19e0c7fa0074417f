/** Every x87, MMX, SSE, AVX, AES and SHA row. */
import type { Instruction } from "../instruction.ts";
import { avx } from "./avx.ts";
import { cryptography } from "./crypto.ts";
import { fma } from "./fma.ts";
import { halfPrecision } from "./half-precision.ts";
import { maskedMoves } from "./masked-moves.ts";
import { packedStrings } from "./packed-strings.ts";
import { sseConvert } from "./sse-convert.ts";
import { sseFloat } from "./sse-float.ts";
import { sse3 } from "./sse3.ts";
import { sse4Float } from "./sse4-float.ts";
import { sse4Integer } from "./sse4-integer.ts";
import { ssse3 } from "./ssse3.ts";
import { vectorInteger } from "./vector-integer.ts";
import { vectorMoves } from "./vector-moves.ts";
import { deriveVex } from "./vex.ts";
import { x87 } from "./x87.ts";
import { x87Control } from "./x87-control.ts";

const sse: readonly Instruction[] = [
  ...vectorMoves,
  ...vectorInteger,
  ...sseFloat,
  ...sseConvert,
  ...sse3,
  ...ssse3,
  ...sse4Integer,
  ...packedStrings,
  ...sse4Float,
  ...cryptography,
];

/** VEX-encoded vector instructions: AVX, AVX2, FMA and F16C. */
export const vexEncoded: readonly Instruction[] = [...deriveVex(sse), ...avx, ...maskedMoves, ...fma, ...halfPrecision];

export const floatingPoint: readonly Instruction[] = [...x87, ...x87Control, ...sse, ...vexEncoded];
