/** Every x87, MMX, SSE and SSE2 row. */
import type { Instruction } from "../instruction.ts";
import { sseConvert } from "./sse-convert.ts";
import { sseFloat } from "./sse-float.ts";
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
];
