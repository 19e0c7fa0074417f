/** Checks a plan's thresholds against the metrics that there are, once a first run has shown them. */
import { distance } from "fastest-levenshtein";
import { AbError, ExitStatus } from "../errors.ts";
import { matches } from "../statistics/verdict.ts";
import type { Threshold } from "./schema.ts";

const suggestions = 3;

/** @throws AbError for the first threshold that fits no metric, with the nearest names */
export function checkThresholds(thresholds: readonly Threshold[] | undefined, names: readonly string[]): void {
  // Quantiles of a histogram are there once it has counted something.
  const known = names.flatMap((name) =>
    name.endsWith(".count") ? [name, ...["p50", "p99"].map((part) => name.replace(/count$/, part))] : [name],
  );
  for (const [index, { metric }] of (thresholds ?? []).entries()) {
    if (known.some((name) => matches(metric, name))) continue;
    const nearest = [...known].sort((a, b) => distance(metric, a) - distance(metric, b)).slice(0, suggestions);
    throw new AbError(
      ExitStatus.badPlan,
      `thresholds[${index}].metric: no metric is called ${JSON.stringify(metric)}; the nearest are ${nearest.join(", ")}`,
    );
  }
}
