/** The parts of the benchmark, in the order of the table. */
import { growthParts } from "./growth.ts";
import { linuxParts } from "./linux.ts";
import { moveParts } from "./moves.ts";
import type { Part } from "./part.ts";
import { timingParts } from "./timing-guests.ts";
import { vmCostParts } from "./vm-costs.ts";

export const parts: readonly Part[] = [...timingParts, ...linuxParts, ...growthParts, ...moveParts, ...vmCostParts];

/** A part of a part: run only when it is named. */
export const isSubpart = (part: Part): boolean => part.name.includes(".");

/** The parts called by these names, all but parts of parts for none. Throws for a name that is none, with the names there are. */
export function chooseParts(names: readonly string[]): readonly Part[] {
  if (names.length === 0) return parts.filter((part) => !isSubpart(part));
  return names.map((name) => {
    const found = parts.find((part) => part.name === name);
    if (!found) throw new RangeError(`there is no benchmark ${name}: choose of ${parts.map((part) => part.name).join(", ")}`);
    return found;
  });
}
