/** The system layer's helpers, by the names that rows call them. */
import type { HelperTable } from "../helpers.ts";
import { flagHelpers } from "./helpers-flags.ts";
import { ioHelpers } from "./helpers-io.ts";
import { registerHelpers } from "./helpers-registers.ts";
import { segmentHelpers } from "./helpers-segments.ts";
import { svmHelpers } from "./helpers-svm.ts";
import { transferHelpers } from "./helpers-transfers.ts";
import { vmxHelpers } from "./helpers-vmx.ts";

export const systemHelpers: HelperTable = {
  ...flagHelpers,
  ...ioHelpers,
  ...registerHelpers,
  ...segmentHelpers,
  ...transferHelpers,
  ...svmHelpers,
  ...vmxHelpers,
};
