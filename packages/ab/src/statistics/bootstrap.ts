/**
 * Intervals by the bootstrap, percentile method: medians and shifts are no smooth functions of the values, so that the
 * acceleration of BCa, which is taken from leaving one value out, is not defined well for them. Source: Efron and Tibshirani,
 * "An Introduction to the Bootstrap", Confidence intervals based on bootstrap percentiles.
 */
import { quantile } from "simple-statistics";
import type { Random } from "../run/random.ts";

export type Interval = [low: number, high: number];

export interface Bootstrap {
  random: Random;
  resamples: number;
  confidence: number;
}

/** Of a statistic of samples that are each drawn anew with replacement. */
export function bootstrapInterval(
  samples: readonly (readonly number[])[],
  statistic: (...drawn: number[][]) => number,
  { random, resamples, confidence }: Bootstrap,
): Interval {
  const found = Array.from({ length: resamples }, () =>
    statistic(...samples.map((sample) => sample.map(() => sample[random.below(sample.length)]!))),
  );
  const tail = (1 - confidence) / 2;
  const [low, high] = quantile(found, [tail, 1 - tail]);
  return [low!, high!];
}
