/**
 * The signed-rank test of Wilcoxon for pairs, two-sided: what two runs of one round have in common, such as who else was on the
 * machine, does not stand between them. Differences of 0 are ranked and then left out (Pratt, "Remarks on zeros and ties in the
 * Wilcoxon signed rank procedures", 1959). Small samples: exact, over all ways to give the ranks signs; large ones: normal
 * approximation. Source: Hollander, Wolfe, Chicken, "Nonparametric Statistical Methods", The One-Sample Location Problem.
 */
import { errorFunction } from "simple-statistics";
import { midRanks } from "./rank-test.ts";

export interface SignedRankTest {
  /** Sum of the ranks of positive differences. */
  v: number;
  /** Two-sided. */
  p: number;
  method: "exact-pairs" | "normal-pairs";
}

/** Up to this many pairs the exact distribution is quick. */
const largestExact = 200;

/** `differences`: b - a of each pair. */
export function signedRankTest(differences: readonly number[]): SignedRankTest {
  const ranked = midRanks(differences.map(Math.abs)).map((rank, index) => ({ rank, difference: differences[index]! }));
  const signed = ranked.filter(({ difference }) => difference !== 0);
  const ranks = signed.map(({ rank }) => rank);
  const v = sum(signed.filter(({ difference }) => difference > 0).map(({ rank }) => rank));
  return differences.length <= largestExact
    ? { v, p: exactP(ranks, v), method: "exact-pairs" }
    : { v, p: normalP(ranks, v), method: "normal-pairs" };
}

/** Smallest p that so many pairs can reach: all differences of one sign. */
export function smallestPairedP(pairs: number): number {
  return Math.min(1, 2 ** (1 - pairs));
}

/** Share of all ways to give the ranks signs whose positive sum is as far from its mean as `v`, or further. */
function exactP(ranks: readonly number[], v: number): number {
  // Twice the ranks are whole numbers, also with ties.
  const doubled = ranks.map((rank) => Math.round(rank * 2));
  const most = sum(doubled);
  let share = new Float64Array(most + 1);
  share[0] = 1;
  for (const rank of doubled) {
    const next = new Float64Array(most + 1);
    for (let total = 0; total <= most; total++) {
      next[total] = (share[total]! + (total >= rank ? share[total - rank]! : 0)) / 2;
    }
    share = next;
  }
  const mean = most / 2;
  const distance = Math.abs(v * 2 - mean);
  return Math.min(1, sum([...share].filter((_, total) => Math.abs(total - mean) >= distance - 1e-9)));
}

function normalP(ranks: readonly number[], v: number): number {
  // Each rank counts or not, at even odds: so ties and zeros are in the variance.
  const variance = sum(ranks.map((rank) => rank * rank)) / 4;
  if (variance === 0) return 1;
  const distance = Math.max(0, Math.abs(v - sum(ranks) / 2) - 0.5);
  return Math.min(1, 1 - errorFunction(distance / Math.sqrt(variance) / Math.SQRT2));
}

function sum(values: readonly number[]): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
