/** The result of a comparison: what --json writes, and what all other reports are made from. */
import { z } from "zod";
import { ExitStatus } from "../errors.ts";
import { planSchema, thresholdSchema } from "../plan/schema.ts";
import { type Comparison, verdicts } from "../statistics/verdict.ts";

/** Raised when a reader of older results would misread a newer one. */
export const resultVersion = 1;

const interval = z.tuple([z.number(), z.number()]).describe("low and high end");
const middle = z.object({ median: z.number(), interval });
const armId = z.enum(["a", "b"]);
const unit = z.enum(["ns", "bytes", "cycles", "count", "ns/s", "bytes/s", "cycles/s", "count/s"]);
const armInfo = z.object({
  label: z.string(),
  package: z.string(),
  version: z.string(),
  parameters: z.record(z.string(), z.unknown()),
});

const comparisonSchema = z.object({
  metric: z.string(),
  unit,
  a: middle,
  b: middle,
  shift: z.number().describe("b - a, in the unit: Hodges and Lehmann's estimate"),
  shiftInterval: interval,
  percent: z.number().optional().describe("the shift in percent of arm A's median"),
  percentInterval: interval.optional(),
  cliffsDelta: z.number().min(-1).max(1),
  method: z
    .enum(["equal-rounds", "exact-pairs", "normal-pairs", "exact", "normal"])
    .describe("pairs are of one round; without, the arms are two samples"),
  p: z.number().optional(),
  pAdjusted: z.number().optional(),
  threshold: thresholdSchema.optional(),
  verdict: z.enum(verdicts).optional().describe("absent where the plan has no threshold for the metric"),
});

export const resultSchema = z.object({
  format: z.literal("mkvm-ab-result"),
  version: z.literal(resultVersion),
  name: z.string(),
  date: z.iso.datetime(),
  kind: z.enum(["run", "live"]),
  clock: z.enum(["wall", "icount"]),
  seed: z.number(),
  arms: z.object({ a: armInfo, b: armInfo }),
  plan: planSchema.optional().describe("of a run"),
  correction: z.enum(["holm", "benjamini-hochberg"]),
  alpha: z.number(),
  confidence: z.number(),
  verdict: z.enum(verdicts),
  complete: z.boolean().describe("false: what is here is a part, see failure and interrupted"),
  interrupted: z.boolean(),
  failure: z.object({ arm: armId, round: z.union([z.number(), z.literal("warm-up")]), reason: z.string() }).optional(),
  exitStatus: z.number(),
  comparisons: z.array(comparisonSchema),
  onlyOn: z.object({ a: z.array(z.string()), b: z.array(z.string()) }).describe("metrics that one arm alone has"),
  rounds: z.array(
    z.object({
      arm: armId,
      round: z.number(),
      cpu: z.number(),
      values: z.record(z.string(), z.number()),
    }),
  ),
});
export type Result = z.output<typeof resultSchema>;
export type ResultComparison = Result["comparisons"][number];

/** The result's JSON schema, as it is published with the package. */
export function resultJsonSchema(): object {
  return z.toJSONSchema(resultSchema, { io: "input" });
}

export function overallVerdict(comparisons: readonly Pick<Comparison, "verdict">[]): Result["verdict"] {
  const found = new Set(comparisons.map(({ verdict }) => verdict));
  return (["regressed", "inconclusive", "improved"] as const).find((verdict) => found.has(verdict)) ?? "same";
}

export function exitStatusOf(result: Pick<Result, "verdict" | "interrupted" | "failure">): number {
  if (result.interrupted) return ExitStatus.interrupted;
  if (result.failure) return ExitStatus.failed;
  if (result.verdict === "regressed") return ExitStatus.regressed;
  return result.verdict === "inconclusive" ? ExitStatus.inconclusive : ExitStatus.ok;
}
