/** Every x87, MMX, SSE, AES and SHA row. */
import type { Instruction } from "../instruction.ts";
import { cryptography } from "./crypto.ts";
import { packedStrings } from "./packed-strings.ts";
import { sseConvert } from "./sse-convert.ts";
import { sseFloat } from "./sse-float.ts";
import { sse3 } from "./sse3.ts";
import { sse4Float } from "./sse4-float.ts";
import { sse4Integer } from "./sse4-integer.ts";
import { ssse3 } from "./ssse3.ts";
import { vectorInteger } from "./vector-integer.ts";
import { vectorMoves } from "./vector-moves.ts";
import { x87 } from "./x87.ts";
import { x87Control } from "./x87-control.ts";

export const floatingPoint: readonly Instruction[] = [
  ...x87,
  ...x87Control,
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
