/** A rollout as a file that people review: YAML or JSON, checked before anything moves. */
import { readFileSync } from "node:fs";
import { LineCounter, parseDocument } from "yaml";
import { z } from "zod";
import { HostError, messageOf } from "../errors.ts";
import { isRecord } from "../loader/package-files.ts";

/** As it is written: what is left out has a default. Durations are texts as 500ms, 10s, 5m, 1h. */
export interface RolloutPlanInput {
  $schema?: string;
  /** Loaded module whose VMs move. */
  from: string;
  /** Loaded module that they move to. */
  to: string;
  /** Only processes of this name. */
  name?: string;
  /** How many VMs have moved after each wave: numbers, or shares of all as "10%". Default 1, 10%, 100%. */
  waves?: (number | string)[];
  /** How long a wave is watched before it is judged. Default 30s. */
  soak?: string;
  /** How long VMs are watched before they move. Default 5s. */
  baseline?: string;
  health?: RolloutHealthInput;
  /** Gives the way back up when the last wave is healthy. Default false. */
  finalize?: boolean;
}

export interface RolloutHealthInput {
  /** Most exits per second, as a multiple of before. Default 3. */
  exits?: number;
  /** Fewest guest instructions per second, as a multiple of before. Default 0.3. */
  progress?: number;
  /** 99th percentile of the interrupt latency at most, as a multiple of before, where modules take it. Default 4. */
  interruptLatency?: number;
  /** Longest blackout of a move. */
  blackout?: string;
  /** Regular expression that the console must show while the wave soaks. */
  heartbeat?: string;
}

/** With defaults, and durations in milliseconds. */
export interface RolloutPlan {
  from: string;
  to: string;
  name?: string;
  waves: (number | string)[];
  soakMs: number;
  baselineMs: number;
  health: { exits: number; progress: number; interruptLatency: number; blackoutMs?: number; heartbeat?: string };
  finalize: boolean;
}
export type RolloutHealth = RolloutPlan["health"];

const text = z.string("give a text").min(1, "give a text");
const duration = z
  .string("write a duration as 500ms, 10s, 5m or 1h")
  .regex(/^\d+(\.\d+)?(ms|s|m|h)$/, "write a duration as 500ms, 10s, 5m or 1h");
const multiple = z.number("give a multiple, as 1.5").min(0, "give a multiple, as 1.5").lt(1e6, "give a multiple, as 1.5");
const wavesProblem = "give a list of waves, each a number of VMs, 3, or a share of all, 10%";
const wave = z.custom<number | string>(isWave, wavesProblem);

const healthSchema = z.strictObject(
  {
    exits: multiple.exactOptional(),
    progress: multiple.exactOptional(),
    interruptLatency: multiple.exactOptional(),
    blackout: duration.exactOptional(),
    heartbeat: z.string("give a regular expression").refine(isPattern, "give a regular expression").exactOptional(),
  },
  { error: notThere("give limits, as exits: 2") },
);
const planSchema: z.ZodType<RolloutPlanInput> = z.strictObject(
  {
    $schema: text.exactOptional(),
    from: text,
    to: text,
    name: text.exactOptional(),
    waves: z.array(wave, wavesProblem).min(1, wavesProblem).exactOptional(),
    soak: duration.exactOptional(),
    baseline: duration.exactOptional(),
    health: healthSchema.exactOptional(),
    finalize: z.boolean("give true or false").exactOptional(),
  },
  { error: notThere("it is no rollout: it has no keys") },
);

/** What to say where an object is expected; what is wrong with its keys says so itself. */
function notThere(message: string): (issue: { code?: string }) => string | undefined {
  return ({ code }) => (code === "invalid_type" ? message : undefined);
}

/**
 * What a file says. `whole`: it must be a plan by itself, without flags that add to it.
 * @throws HostError that names the file, and the place in it where there is one
 */
export function readPlanFile(path: string, whole = true): Partial<RolloutPlanInput> {
  let content: string;
  try {
    content = readFileSync(path, "utf8");
  } catch (thrown) {
    throw new HostError("ENOENT", `rollout ${path} cannot be read: ${messageOf(thrown)}`);
  }
  return parsePlan(content, path, whole);
}

/** @throws HostError with the place as `name:line:column` */
export function parsePlan(content: string, name: string, whole = true): Partial<RolloutPlanInput> {
  const lines = new LineCounter();
  const document = parseDocument(content, { lineCounter: lines });
  const at = (offset: number | undefined): string => {
    if (offset === undefined) return name;
    const { line, col } = lines.linePos(offset);
    return `${name}:${line}:${col}`;
  };
  const [error] = document.errors;
  if (error) throw new HostError("EINVAL", `${at(error.pos[0])}: no YAML or JSON: ${error.message.split("\n")[0]}`);
  const value: unknown = document.toJS();
  const problem = problemOf(value, whole);
  if (!problem) return value as Partial<RolloutPlanInput>;
  const node = document.getIn(problem.path, true) as { range?: [number, number, number] } | undefined;
  throw new HostError("EINVAL", `${at(node?.range?.[0])}: ${problem.message}`);
}

/** With defaults filled in. @throws HostError that says which key is wrong */
export function checkPlan(input: unknown): RolloutPlan {
  const problem = problemOf(input, true);
  if (problem) throw new HostError("EINVAL", `rollout: ${problem.message}`);
  const { from, to, name, waves, soak, baseline, health = {}, finalize } = input as RolloutPlanInput;
  if (from === to) throw new HostError("EINVAL", `rollout: from and to are both ${to}`);
  const { exits = 3, progress = 0.3, interruptLatency = 4, blackout, heartbeat } = health;
  return {
    from,
    to,
    ...(name !== undefined && { name }),
    waves: waves ?? [1, "10%", "100%"],
    soakMs: millisecondsOf(soak ?? "30s"),
    baselineMs: millisecondsOf(baseline ?? "5s"),
    health: {
      exits,
      progress,
      interruptLatency,
      ...(blackout !== undefined && { blackoutMs: millisecondsOf(blackout) }),
      ...(heartbeat !== undefined && { heartbeat }),
    },
    finalize: finalize ?? false,
  };
}

function millisecondsOf(written: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h)$/.exec(written)!;
  return Number(number) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[unit as "ms" | "s" | "m" | "h"];
}

interface Problem {
  path: PropertyKey[];
  message: string;
}

/** `whole`: keys that a plan must have are there. */
function problemOf(plan: unknown, whole: boolean): Problem | undefined {
  const parsed = planSchema.safeParse(plan);
  if (parsed.success) return undefined;
  const issues = parsed.error.issues.filter((issue) => whole || !isMissing(plan, issue));
  // A key that is misspelt is missing too: the misspelling says more
  const issue = issues.find(({ code }) => code === "unrecognized_keys") ?? issues[0];
  if (issue === undefined) return undefined;
  if (issue.code === "unrecognized_keys") {
    const path = [...issue.path, issue.keys[0]!];
    return { path, message: `${path.join(".")}: no such key here` };
  }
  if (isMissing(plan, issue)) return { path: issue.path.slice(0, -1), message: `${issue.path.join(".")}: missing` };
  // Of a list the whole is named: what one element may be depends on none of the others
  const path = issue.path.filter((part) => typeof part !== "number");
  return { path, message: path.length > 0 ? `${path.join(".")}: ${issue.message}` : issue.message };
}

function isMissing(plan: unknown, { code, path }: z.core.$ZodIssue): boolean {
  return code === "invalid_type" && path.length === 1 && isRecord(plan) && plan[path[0] as string] === undefined;
}

function isWave(wave: unknown): boolean {
  if (typeof wave === "number") return Number.isInteger(wave) && wave >= 1;
  return typeof wave === "string" && /^([1-9]\d*|([1-9]\d?|100)%)$/.test(wave);
}

function isPattern(value: string): boolean {
  if (value === "") return false;
  try {
    return new RegExp(value, "m") !== undefined;
  } catch {
    return false;
  }
}
