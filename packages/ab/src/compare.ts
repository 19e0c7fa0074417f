import { checkThresholds } from "./plan/metric-names.ts";
import { checkPlan } from "./plan/read-plan.ts";
import type { PlanInput } from "./plan/schema.ts";
import type { Result } from "./report/result.ts";
import { judgedOnly, runResult } from "./report/run-result.ts";
import { newSeed } from "./run/random.ts";
import { runPlan } from "./run/run-plan.ts";
import { isPrecise } from "./statistics/verdict.ts";

export interface CompareOptions {
  /** Where paths and package names of the plan are looked for; default the working directory. */
  directory?: string;
  /** Ends it early: VMs are stopped, and the result is partial. */
  signal?: AbortSignal;
  /** Called after each run. */
  onProgress?: (done: number, total: number, what: string) => void;
}

/**
 * Runs a plan to its end, or to the first run that fails, which the result then says. The plan's seed, or a new one, is in the
 * result and repeats it.
 * @throws AbError (with a status of the command) for a plan that is none, a missing file, an arm that cannot be loaded, a threshold
 *   on a metric that there is not
 */
export async function compare(plan: PlanInput, options: CompareOptions = {}): Promise<Result> {
  const checked = checkPlan(plan);
  const seed = checked.seed ?? newSeed();
  const runs = await runPlan(checked, options.directory ?? process.cwd(), {
    seed,
    signal: options.signal ?? new AbortController().signal,
    ...(options.onProgress && { onProgress: options.onProgress }),
    isPrecise: (rounds) => isPrecise(judgedOnly(rounds, checked, seed)),
    onMetrics: (names) => checkThresholds(checked.thresholds, names),
  });
  return runResult(checked, runs, seed);
}
