import type { Result } from "../report/result.ts";
import { smallestP } from "../statistics/rank-test.ts";
import { smallestPairedP } from "../statistics/signed-rank-test.ts";

/** Says when there is so little that no difference, however large, could have been found. */
export function warnOfFew(result: Result): void {
  const { comparisons, alpha, rounds, kind, complete } = result;
  const tested = comparisons.filter(({ verdict, p }) => verdict !== undefined && p !== undefined);
  const count = (wanted: string) => rounds.filter(({ arm }) => arm === wanted).length;
  const [a, b] = [count("a"), count("b")];
  // Of several tests the first is held to the strictest bound, by either correction.
  if (!complete || tested.length === 0 || a === 0 || b === 0) return;
  const smallest = kind === "live" ? smallestP(a, b) : smallestPairedP(a);
  if (smallest * tested.length < alpha) return;
  const what = kind === "live" ? "VMs" : "rounds";
  process.stderr.write(
    `mkvm ab: ${a} and ${b} ${what} are too few to find any difference in ${tested.length} metrics at alpha ${alpha}: take more ${what}, or judge fewer metrics\n`,
  );
}
