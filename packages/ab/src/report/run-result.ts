/** From a plan's runs to its result. */
import type { ArmId, Plan } from "../plan/schema.ts";
import type { ArmInfo, Round, Runs } from "../run/run-plan.ts";
import { compareAll, type Samples } from "../statistics/verdict.ts";
import { exitStatusOf, overallVerdict, type Result, resultVersion } from "./result.ts";

/** Rounds that an arm needs for anything to be said of it. */
const fewestRounds = 2;

export function runResult(plan: Plan, runs: Runs, seed: number): Result {
  const values = (arm: ArmId) => runs.rounds.filter((round) => round.arm === arm);
  const [a, b] = [values("a"), values("b")];
  const [namesA, namesB] = [namesIn(a), namesIn(b)];
  const onlyIn = (names: Set<string>, others: Set<string>) => [...names].filter((name) => !others.has(name));
  const shared = [...namesA].filter((name) => namesB.has(name));
  const samples = shared
    .map((metric): Samples => ({ metric, a: valuesOf(a, metric), b: valuesOf(b, metric) }))
    .filter((sample) => sample.a.length >= fewestRounds && sample.b.length >= fewestRounds);
  const units = new Map(runs.rounds.flatMap((round) => Object.entries(round.metrics).map(([name, { unit }]) => [name, unit])));
  const comparisons = compareAll(samples, plan, seed).map((found) => ({ ...found, unit: units.get(found.metric)! }));
  const complete = !runs.failure && !runs.interrupted;
  const judged = complete || comparisons.length > 0 ? overallVerdict(comparisons) : "inconclusive";
  const info = (id: ArmId) => ({ label: plan.arms[id].label ?? labelOf(runs.arms[id]), ...runs.arms[id] });
  const outcome = {
    verdict: judged,
    interrupted: runs.interrupted,
    ...(runs.failure && { failure: runs.failure }),
  };
  return {
    format: "mkvm-ab-result",
    version: resultVersion,
    name: plan.name ?? `${info("a").label} against ${info("b").label}`,
    date: new Date().toISOString(),
    kind: "run",
    clock: plan.clock,
    seed,
    arms: { a: info("a"), b: info("b") },
    plan,
    correction: plan.correction,
    alpha: plan.alpha,
    confidence: plan.confidence,
    ...outcome,
    complete,
    exitStatus: exitStatusOf(outcome),
    comparisons,
    onlyOn: { a: onlyIn(namesA, namesB), b: onlyIn(namesB, namesA) },
    rounds: runs.rounds.map(({ arm, round, cpu, metrics }) => ({
      arm,
      round,
      cpu,
      values: Object.fromEntries(Object.entries(metrics).map(([name, { value }]) => [name, value])),
    })),
  };
}

function namesIn(rounds: readonly Round[]): Set<string> {
  return new Set(rounds.flatMap(({ metrics }) => Object.keys(metrics)));
}

function valuesOf(rounds: readonly Round[], metric: string): number[] {
  return rounds.flatMap(({ metrics }) => (metrics[metric] ? [metrics[metric].value] : []));
}

function labelOf({ package: name, version }: ArmInfo): string {
  return `${name} ${version}`;
}
