/**
 * The rank test of Mann and Whitney for two independent samples, two-sided. Small samples: exact, from the distribution of the
 * rank sum over all ways to deal the pooled values out, ties with their mean ranks (Streitberg and Roehmel, "Exact distributions
 * for permutation and rank tests", Statistical Software Newsletter 12, 1986). Large ones: normal approximation with corrections
 * for ties and continuity. Source: Hollander, Wolfe, Chicken, "Nonparametric Statistical Methods", The Two-Sample Location
 * Problem.
 */
import { errorFunction } from "simple-statistics";

export interface RankTest {
  /** Pairs with b greater than a; ties count a half. */
  u: number;
  /** Two-sided. */
  p: number;
  method: "exact" | "normal";
}

/** Up to this many values in both samples the exact distribution is quick. */
const largestExact = 100;

export function rankTest(a: readonly number[], b: readonly number[]): RankTest {
  const ranks = midRanks([...a, ...b]);
  const rankSum = sum(ranks.slice(a.length));
  const u = rankSum - (b.length * (b.length + 1)) / 2;
  return ranks.length <= largestExact
    ? { u, p: exactP(ranks, b.length, rankSum), method: "exact" }
    : { u, p: normalP(ranks, a.length, b.length, u), method: "normal" };
}

/** Smallest p that samples of these sizes can reach: all of one above all of the other. */
export function smallestP(sizeA: number, sizeB: number): number {
  const from = (first: number, size: number) => Array.from({ length: size }, (_, index) => first + index);
  return rankTest(from(0, sizeA), from(sizeA, sizeB)).p;
}

/** Ranks from 1; equal values share the mean of theirs. */
export function midRanks(values: readonly number[]): number[] {
  const order = values.map((_, index) => index).sort((i, j) => values[i]! - values[j]!);
  const ranks = new Array<number>(values.length);
  for (let first = 0; first < order.length; ) {
    let end = first;
    while (end < order.length && values[order[end]!] === values[order[first]!]) end++;
    for (let at = first; at < end; at++) ranks[order[at]!] = (first + 1 + end) / 2;
    first = end;
  }
  return ranks;
}

/** Share of all choices of `size` ranks whose sum is as far from its mean as `rankSum`, or further. */
function exactP(ranks: readonly number[], size: number, rankSum: number): number {
  if (ranks.every((rank) => rank === ranks[0])) return 1;
  // Twice the ranks are whole numbers, also with ties.
  const doubled = ranks.map((rank) => Math.round(rank * 2));
  const most = sum(doubled);
  // ways[k][s]: choices of k ranks with sum s; as shares of all choices of k, so that nothing overflows.
  const ways = Array.from({ length: size + 1 }, () => new Float64Array(most + 1));
  ways[0]![0] = 1;
  for (const [taken, rank] of doubled.entries()) {
    for (let count = Math.min(size, taken + 1); count > 0; count--) {
      const from = ways[count - 1]!;
      const into = ways[count]!;
      for (let total = most; total >= rank; total--) into[total]! += from[total - rank]!;
    }
  }
  const mean = (size * (ranks.length + 1)) / 2;
  const distance = Math.abs(rankSum - mean) * 2;
  let extreme = 0;
  let all = 0;
  for (const [total, count] of ways[size]!.entries()) {
    all += count;
    if (Math.abs(total - mean * 2) >= distance - 1e-9) extreme += count;
  }
  return Math.min(1, extreme / all);
}

function normalP(ranks: readonly number[], sizeA: number, sizeB: number, u: number): number {
  const n = ranks.length;
  const counts = new Map<number, number>();
  for (const rank of ranks) counts.set(rank, (counts.get(rank) ?? 0) + 1);
  const ties = sum([...counts.values()].map((count) => count ** 3 - count));
  const variance = ((sizeA * sizeB) / 12) * (n + 1 - ties / (n * (n - 1)));
  if (variance === 0) return 1;
  const distance = Math.max(0, Math.abs(u - (sizeA * sizeB) / 2) - 0.5);
  return Math.min(1, 1 - errorFunction(distance / Math.sqrt(variance) / Math.SQRT2));
}

function sum(values: readonly number[]): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
