/** What a plan may say. Everything else in it is refused, with its place. */
import { z } from "zod";

const text = z.string().min(1);
const size = z.string().regex(/^\d+[KMG]?$/i, "write a size as 64M: a number with K, M or G");
const marker = text.max(4096).regex(/^[^\r\n]*$/, "a marker is part of one line");

/** A fact that the report repeats, and the guest's part of a plan that arms may have differently. */
const machine = {
  memory: size.optional().describe("RAM of the guest; default 256M"),
  cpus: z.int().min(1).max(16).optional().describe("vCPUs; default 1"),
  append: z.string().optional().describe("kernel command line"),
};

export const armSchema = z
  .strictObject({
    module: text.describe("package name, alias, or path to a package's directory from the plan's folder"),
    parameters: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])).optional(),
    label: text.optional().describe("name in reports; default the module's"),
    ...machine,
    kernel: text.optional().describe("another image than the workload's"),
  })
  .describe("a module with parameters, and what else this arm has differently");

const bootSchema = z.strictObject({
  kind: z.literal("boot"),
  kernel: text,
  initrd: text.optional(),
  end: marker.describe("text on the console that ends the measured part"),
  ...machine,
});
const imageSchema = z.strictObject({
  kind: z.literal("image"),
  kernel: text.describe("multiboot, ELF, bzImage, or raw code with a format"),
  format: z.enum(["flat16", "flat32", "flat64"]).optional(),
  initrd: text.optional(),
  start: marker.optional().describe("text on the console that begins the measured part; default the first instruction"),
  end: marker,
  ...machine,
});
const scriptSchema = z.strictObject({
  kind: z.literal("script"),
  kernel: text,
  initrd: text.describe("holds /bin/sh, mount and what the script needs"),
  script: text.describe("shell script that /bin/sh of the initrd runs"),
  ...machine,
});

export const thresholdSchema = z
  .strictObject({
    metric: text.describe("a metric, or several with * for any text"),
    worse: z.enum(["higher", "lower"]).default("higher"),
    percent: z.number().min(0).optional().describe("of the median of arm A"),
    absolute: z.number().min(0).optional().describe("in the metric's unit"),
  })
  .refine(({ percent, absolute }) => (percent === undefined) !== (absolute === undefined), "give one of percent and absolute");

export const planSchema = z
  .strictObject({
    $schema: z.string().optional(),
    name: text.optional(),
    arms: z.strictObject({ a: armSchema, b: armSchema }),
    workload: z.discriminatedUnion("kind", [bootSchema, imageSchema, scriptSchema]),
    clock: z.enum(["wall", "icount"]).default("wall"),
    schedule: z.enum(["interleaved", "concurrent"]).default("interleaved"),
    rounds: z.int().min(2).max(500).default(10).describe("measured runs of each arm"),
    maxRounds: z
      .int()
      .min(2)
      .max(5000)
      .optional()
      .describe(
        "after `rounds`, more of them until the interval of each judged metric is no wider than its threshold, up to this many in all; default: no more",
      ),
    warmUp: z.int().min(0).max(1000).default(1).describe("runs of each arm before, not counted"),
    seed: z.int().min(0).max(0xffff_ffff).optional().describe("of the order and the bootstrap; default a new one, printed"),
    timeoutS: z.number().positive().max(86_400).default(300).describe("real seconds that one run may take"),
    moves: z
      .array(z.number().gt(0).lt(1))
      .min(1)
      .optional()
      .describe("parts of the workload after which the VM moves to the other arm, and back: an even count"),
    thresholds: z
      .array(thresholdSchema)
      .min(1)
      .optional()
      .describe("what is judged; the first that fits a metric holds; default: 5 % more time, instructions or exits"),
    alpha: z.number().gt(0).lt(0.5).default(0.05).describe("chance of one false alarm in the whole plan, at most"),
    confidence: z.number().gt(0.5).lt(1).default(0.95).describe("of the intervals"),
    resamples: z.int().min(200).max(100_000).default(2000).describe("of the bootstrap"),
    correction: z
      .enum(["holm", "benjamini-hochberg"])
      .default("holm")
      .describe("holm bounds the chance of any false alarm, benjamini-hochberg the share of false ones among alarms"),
  })
  .refine(({ rounds, maxRounds }) => maxRounds === undefined || maxRounds >= rounds, {
    path: ["maxRounds"],
    message: "give at least as many as rounds",
  })
  .refine(({ moves }) => moves === undefined || moves.length % 2 === 0, {
    path: ["moves"],
    message: "a VM that goes must come back: give an even count",
  })
  .refine(({ moves }) => moves === undefined || moves.every((at, index) => index === 0 || at > moves[index - 1]!), {
    path: ["moves"],
    message: "give them in ascending order",
  })
  .refine(({ moves, warmUp }) => moves === undefined || warmUp > 0, {
    path: ["warmUp"],
    message: "moves need a warm-up run, which tells how long the workload is",
  })
  .refine(({ moves, schedule }) => moves === undefined || schedule === "interleaved", {
    path: ["schedule"],
    message: "moves need arms in turn: two VMs would meet on one CPU",
  });

/** Of a plan without thresholds, as far as the module has such metrics. */
export const defaultThresholds: readonly Threshold[] = [
  { metric: "time", worse: "higher", percent: 5 },
  { metric: "instructions", worse: "higher", percent: 5 },
  { metric: "exits", worse: "higher", percent: 5 },
];

export type Arm = z.output<typeof armSchema>;
export type Workload = z.output<typeof planSchema>["workload"];
export type Threshold = z.output<typeof thresholdSchema>;
export type PlanInput = z.input<typeof planSchema>;
export type Plan = z.output<typeof planSchema>;
export const armIds = ["a", "b"] as const;
export type ArmId = (typeof armIds)[number];

/** The plan's JSON schema, as it is published with the package. */
export function planJsonSchema(): object {
  return z.toJSONSchema(planSchema, { io: "input" });
}
