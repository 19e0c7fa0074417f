import type { SystemCase } from "./case-writer.ts";
import { debugCases } from "./debug-cases.ts";
import { exceptionCases } from "./exception-cases.ts";
import { gateCases } from "./gate-cases.ts";
import { pagingCases } from "./paging-cases.ts";
import { segmentCases } from "./segment-cases.ts";
import { taskCases } from "./task-cases.ts";
import { virtual8086Cases } from "./virtual-8086-cases.ts";

const all: readonly SystemCase[] = [
  ...pagingCases,
  ...segmentCases,
  ...gateCases,
  ...taskCases,
  ...debugCases,
  ...exceptionCases,
  ...virtual8086Cases,
];

/** As many as one ROM takes. */
const CASES_OF_A_ROM = 2500;

/** The cases for code of that size, in the order of the guests that carry them out. The short form is one guest's. */
export function systemCases(bits: 32 | 64, form: "short" | "long"): SystemCase[][] {
  const wanted = all.filter((each) => each.bits === bits && (form === "long" || !each.isLong));
  if (form === "short") {
    const step = Math.ceil(wanted.length / CASES_OF_A_ROM);
    return [wanted.filter((_, i) => i % step === 0)];
  }
  return Array.from({ length: Math.ceil(wanted.length / CASES_OF_A_ROM) }, (_, i) =>
    wanted.slice(i * CASES_OF_A_ROM, (i + 1) * CASES_OF_A_ROM),
  );
}
