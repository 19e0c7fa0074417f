/** Helpers of x87, MMX and SSE rows. */
import type { HelperTable } from "../helpers.ts";
import { sseHelpers } from "./sse.ts";
import { x87Arithmetic } from "./x87-arithmetic.ts";
import { x87Memory } from "./x87-memory.ts";
import { x87Transcendental } from "./x87-transcendental.ts";
import { xsaveHelpers } from "./xsave.ts";

export const fpuHelpers: HelperTable = {
  ...x87Arithmetic,
  ...x87Transcendental,
  ...x87Memory,
  ...sseHelpers,
  ...xsaveHelpers,
};
