/** From what was measured to a result. */
import type { LoadedModule } from "@mkvm/host";
import type { LiveRun } from "../live/live-run.ts";
import type { ArmId, Plan } from "../plan/schema.ts";
import type { Runs } from "../run/run-plan.ts";
import { type Comparison, compareAll, type Judging, type Samples, thresholdOf } from "../statistics/verdict.ts";
import { exitStatusOf, overallVerdict, type Result, type ResultComparison, resultVersion } from "./result.ts";

/** Values that an arm needs for anything to be said of it. */
const fewestValues = 2;

/** A run of a round, or a VM of a live comparison, which has none. */
interface Unit {
  arm: ArmId;
  round?: number;
  metrics: Record<string, { value: number; unit: ResultComparison["unit"] }>;
}

export function runResult(plan: Plan, runs: Runs, seed: number): Result {
  const info = (id: ArmId) => ({ label: plan.arms[id].label ?? labelOf(runs.arms[id]), ...runs.arms[id] });
  const arms = { a: info("a"), b: info("b") };
  return {
    ...head("run", plan, seed, plan.name ?? `${arms.a.label} against ${arms.b.label}`),
    arms,
    plan,
    ...judged(runs.rounds, plan, seed, runs),
    rounds: runs.rounds.map(({ arm, round, cpu, metrics }) => ({ arm, round, cpu, values: valuesOnly(metrics) })),
  };
}

/** `judging`: as of a plan. */
export function liveResult(run: LiveRun, judging: Judging, seed: number): Result {
  const info = ({ name, package: from, version, parameters }: LoadedModule) => ({
    label: name,
    package: from,
    version,
    parameters,
  });
  const { a, b } = run.modules;
  return {
    ...head("live", judging, seed, `${a.name} against ${b.name}, live`),
    arms: { a: info(a), b: info(b) },
    ...judged(run.rates, judging, seed, run),
    rounds: run.rates.map(({ arm, pid, metrics }) => ({ arm, round: pid, cpu: 0, values: valuesOnly(metrics) })),
  };
}

function head(kind: Result["kind"], { clock, correction, alpha, confidence }: Judging, seed: number, name: string) {
  const date = new Date().toISOString();
  return {
    format: "mkvm-ab-result",
    version: resultVersion,
    name,
    date,
    kind,
    clock,
    seed,
    correction,
    alpha,
    confidence,
  } as const;
}

function judged(
  units: readonly Unit[],
  judging: Judging,
  seed: number,
  { failure, interrupted }: Pick<Runs, "failure" | "interrupted">,
) {
  const names = { a: namesIn(units, "a"), b: namesIn(units, "b") };
  const only = (one: Set<string>, other: Set<string>) => [...one].filter((name) => !other.has(name));
  const samples = samplesOf(units);
  const unitOf = new Map(units.flatMap(({ metrics }) => Object.entries(metrics).map(([name, { unit }]) => [name, unit])));
  const comparisons = compareAll(samples, judging, seed).map((found) => ({ ...found, unit: unitOf.get(found.metric)! }));
  const isJudged = comparisons.some(({ verdict }) => verdict !== undefined);
  const outcome = {
    verdict: isJudged ? overallVerdict(comparisons) : ("inconclusive" as const),
    interrupted,
    ...(failure && { failure }),
  };
  return {
    ...outcome,
    complete: !failure && !interrupted,
    exitStatus: exitStatusOf(outcome),
    comparisons,
    onlyOn: { a: only(names.a, names.b), b: only(names.b, names.a) },
  };
}

/** Of a plan's rounds so far, what is judged. */
export function judgedOnly(rounds: readonly Unit[], plan: Plan, seed: number): Comparison[] {
  return compareAll(
    samplesOf(rounds).filter(({ metric }) => thresholdOf(metric, plan)),
    plan,
    seed,
  );
}

/** Of all metrics that both arms have. */
function samplesOf(units: readonly Unit[]): Samples[] {
  const onB = namesIn(units, "b");
  return [...namesIn(units, "a")]
    .filter((name) => onB.has(name))
    .map((metric) => sampleOf(units, metric))
    .filter(({ a, b }) => a.length >= fewestValues && b.length >= fewestValues);
}

function sampleOf(units: readonly Unit[], metric: string): Samples {
  const having = (arm: ArmId) => units.filter((unit) => unit.arm === arm && unit.metrics[metric]);
  const numberOf = (unit: Unit) => unit.metrics[metric]!.value;
  const [a, b] = [having("a"), having("b")];
  if (units.some(({ round }) => round === undefined)) {
    return { metric, a: a.map(numberOf), b: b.map(numberOf), paired: false };
  }
  const ofB = new Map(b.map((unit) => [unit.round, unit]));
  const both = a.filter(({ round }) => ofB.has(round));
  return { metric, a: both.map(numberOf), b: both.map(({ round }) => numberOf(ofB.get(round)!)), paired: true };
}

function namesIn(units: readonly Unit[], arm: ArmId): Set<string> {
  return new Set(units.filter((unit) => unit.arm === arm).flatMap(({ metrics }) => Object.keys(metrics)));
}

function valuesOnly(metrics: Unit["metrics"]): Record<string, number> {
  return Object.fromEntries(Object.entries(metrics).map(([name, { value }]) => [name, value]));
}

function labelOf({ package: name, version }: { package: string; version: string }): string {
  return `${name} ${version}`;
}
