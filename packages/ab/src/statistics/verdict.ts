/**
 * The verdict on a metric needs two things: that the difference is no accident (the corrected rank test), and that it is as large
 * as the plan cares about (its threshold). `same` is a finding too: the interval of the difference lies inside the threshold. What is
 * neither found different nor shown to be the same is `inconclusive`: more rounds, or a quieter machine. Runs of one round are compared
 * with each other, VMs of a live comparison as two samples.
 *
 * A metric that has one value on each arm in all rounds under icount, where a run is a function of its inputs, needs no test: the
 * two values are compared.
 */
import { median } from "simple-statistics";
import { defaultThresholds, type Plan, type Threshold } from "../plan/schema.ts";
import { createRandom } from "../run/random.ts";
import { bootstrapInterval, type Interval } from "./bootstrap.ts";
import { adjusted } from "./correction.ts";
import { cliffsDelta, hodgesLehmannShift, pseudoMedian } from "./effect.ts";
import { rankTest, smallestP } from "./rank-test.ts";
import { signedRankTest, smallestPairedP } from "./signed-rank-test.ts";

export const verdicts = ["regressed", "improved", "same", "inconclusive"] as const;
export type Verdict = (typeof verdicts)[number];

export interface Comparison {
  metric: string;
  /** Medians, and their intervals. */
  a: { median: number; interval: Interval };
  b: { median: number; interval: Interval };
  /** b - a: Hodges and Lehmann's estimate, in the metric's unit. */
  shift: number;
  shiftInterval: Interval;
  /** The shift in percent of arm A's median; undefined when that is 0. */
  percent?: number;
  percentInterval?: Interval;
  cliffsDelta: number;
  /** "equal-rounds": each arm has one value in all rounds, and these two are compared. */
  method: "equal-rounds" | "exact-pairs" | "normal-pairs" | "exact" | "normal";
  /** Two-sided, before and after the correction; undefined where no test is needed. */
  p?: number;
  pAdjusted?: number;
  threshold?: Threshold;
  /** Undefined without a threshold: shown, not judged. */
  verdict?: Verdict;
}

export interface Samples {
  metric: string;
  a: readonly number[];
  b: readonly number[];
  /** Values of one index are of one round. */
  paired: boolean;
}

/** What of a plan matters here. */
export type Judging = Pick<Plan, "clock" | "thresholds" | "alpha" | "confidence" | "resamples" | "correction">;

export function compareAll(samples: readonly Samples[], plan: Judging, seed: number): Comparison[] {
  const comparisons = samples.map((sample) => compare(sample, plan, seed));
  // Only what is judged is corrected for: the others raise no alarm.
  const tested = comparisons.filter(({ threshold, p }) => threshold !== undefined && p !== undefined);
  const corrected = adjusted(
    tested.map(({ p }) => p!),
    plan.correction,
  );
  for (const [index, comparison] of tested.entries()) comparison.pAdjusted = corrected[index]!;
  for (const [index, comparison] of comparisons.entries()) {
    const { a, b, paired } = samples[index]!;
    // With so few values that the test could find nothing, an interval of theirs proves nothing either.
    const smallest = paired ? smallestPairedP(a.length) : smallestP(a.length, b.length);
    const enough = comparison.p === undefined || smallest * tested.length < plan.alpha;
    if (comparison.threshold) comparison.verdict = judge(comparison, plan.alpha, enough);
  }
  return comparisons;
}

/**
 * Whether more rounds would tell nothing new: no interval of what is judged is wider than its threshold. On which side of 0 an
 * interval lies does not count, so that to stop here favours no verdict.
 */
export function isPrecise(comparisons: readonly Comparison[]): boolean {
  const judged = comparisons.filter(({ threshold }) => threshold !== undefined);
  return judged.every((comparison) => {
    const [low, high] = comparison.shiftInterval;
    return high - low <= limitOf(comparison);
  });
}

function compare({ metric, a, b, paired }: Samples, plan: Judging, seed: number): Comparison {
  const threshold = thresholdOf(metric, plan);
  const [medianA, medianB] = [median([...a]), median([...b])];
  const single = plan.clock === "icount" && isConstant(a) && isConstant(b);
  const differences = paired ? b.map((value, index) => value - a[index]!) : [];
  const test = paired ? signedRankTest(differences) : rankTest(a, b);
  const shift = paired ? pseudoMedian(differences) : hodgesLehmannShift(a, b);
  const flat = isConstant(a) && isConstant(b);
  // Each metric has a sequence of its own, so that one more metric changes no interval of the others.
  const bootstrap = { random: createRandom(seed ^ hash(metric), 1), resamples: plan.resamples, confidence: plan.confidence };
  const interval = (values: readonly number[]): Interval =>
    isConstant(values) ? [values[0]!, values[0]!] : bootstrapInterval([values], (drawn) => median(drawn), bootstrap);
  const shiftInterval: Interval = flat
    ? [shift, shift]
    : paired
      ? bootstrapInterval([differences], pseudoMedian, bootstrap)
      : bootstrapInterval([a, b], hodgesLehmannShift, bootstrap);
  const inPercent = (value: number) => (100 * value) / Math.abs(medianA);
  return {
    metric,
    a: { median: medianA, interval: interval(a) },
    b: { median: medianB, interval: interval(b) },
    shift,
    shiftInterval,
    ...(medianA !== 0 && { percent: inPercent(shift), percentInterval: shiftInterval.map(inPercent) as Interval }),
    cliffsDelta: cliffsDelta(rankTest(a, b).u, a.length, b.length),
    method: single ? "equal-rounds" : test.method,
    ...(!single && { p: test.p }),
    ...(threshold && { threshold }),
  };
}

function judge(comparison: Comparison, alpha: number, enough: boolean): Verdict {
  const { threshold, shift, shiftInterval, pAdjusted } = comparison;
  const limit = limitOf(comparison);
  const significant = pAdjusted === undefined || pAdjusted < alpha;
  // A limit of 0 is passed by any difference, not by none. Rounding must not let exactly 5 % slip under 5 %.
  const large = shift !== 0 && Math.abs(shift) >= limit * (1 - 1e-12);
  if (significant && large) return shift > 0 === (threshold!.worse === "higher") ? "regressed" : "improved";
  const [low, high] = shiftInterval;
  const inside = (low === 0 && high === 0) || (enough && low > -limit && high < limit);
  return inside ? "same" : "inconclusive";
}

/** The first that fits. */
export function thresholdOf(metric: string, { thresholds }: Pick<Plan, "thresholds">): Threshold | undefined {
  return (thresholds ?? defaultThresholds).find((candidate) => matches(candidate.metric, metric));
}

/** In the metric's unit. */
function limitOf({ threshold, a }: Comparison): number {
  const { percent, absolute } = threshold!;
  return absolute ?? (Math.abs(a.median) * percent!) / 100;
}

/** `pattern`: a name, with * for any text. */
export function matches(pattern: string, name: string): boolean {
  const source = pattern
    .split("*")
    .map((part) => part.replace(/[\\^$.|?+()[\]{}]/g, "\\$&"))
    .join(".*");
  return new RegExp(`^${source}$`).test(name);
}

function isConstant(values: readonly number[]): boolean {
  return values.every((value) => value === values[0]);
}

/** FNV-1a. */
function hash(text: string): number {
  let value = 0x811c_9dc5;
  for (let at = 0; at < text.length; at++) value = Math.imul(value ^ text.charCodeAt(at), 0x0100_0193);
  return value >>> 0;
}
