/** A rollout as a file that people review: YAML or JSON, checked before anything moves. */
import { readFileSync } from "node:fs";
import { LineCounter, parseDocument } from "yaml";
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

interface Key {
  required?: boolean;
  /** What can be there instead of `value`; undefined when it is right. */
  problem(value: unknown): string | undefined;
}

const text: Key = { problem: (value) => (typeof value === "string" && value !== "" ? undefined : "give a text") };
const duration: Key = {
  problem: (value) =>
    typeof value === "string" && /^\d+(\.\d+)?(ms|s|m|h)$/.test(value) ? undefined : "write a duration as 500ms, 10s, 5m or 1h",
};
const multiple: Key = {
  problem: (value) => (typeof value === "number" && value >= 0 && value < 1e6 ? undefined : "give a multiple, as 1.5"),
};

const planKeys: Record<keyof RolloutPlanInput, Key> = {
  $schema: text,
  from: { ...text, required: true },
  to: { ...text, required: true },
  name: text,
  waves: {
    problem: (value) =>
      Array.isArray(value) && value.length > 0 && value.every(isWave)
        ? undefined
        : "give a list of waves, each a number of VMs, 3, or a share of all, 10%",
  },
  soak: duration,
  baseline: duration,
  health: { problem: (value) => (isRecord(value) ? undefined : "give limits, as exits: 2") },
  finalize: { problem: (value) => (typeof value === "boolean" ? undefined : "give true or false") },
};
const healthKeys: Record<keyof RolloutHealthInput, Key> = {
  exits: multiple,
  progress: multiple,
  interruptLatency: multiple,
  blackout: duration,
  heartbeat: { problem: (value) => (isPattern(value) ? undefined : "give a regular expression") },
};

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
  path: string[];
  message: string;
}

function problemOf(plan: unknown, whole: boolean): Problem | undefined {
  if (!isRecord(plan)) return { path: [], message: "it is no rollout: it has no keys" };
  return problemWith(plan, planKeys, [], whole) ?? problemWith((plan.health ?? {}) as object, healthKeys, ["health"], true);
}

function problemWith(value: object, keys: Record<string, Key>, place: string[], whole: boolean): Problem | undefined {
  const say = (key: string, what: string): Problem => {
    const path = [...place, key];
    return { path, message: `${path.join(".")}: ${what}` };
  };
  for (const key of Object.keys(value)) if (!Object.hasOwn(keys, key)) return say(key, "no such key here");
  for (const [key, { required, problem }] of Object.entries(keys)) {
    const found = (value as Record<string, unknown>)[key];
    if (found === undefined) {
      if (required && whole) return { path: place, message: `${[...place, key].join(".")}: missing` };
      continue;
    }
    const what = problem(found);
    if (what) return say(key, what);
  }
  return undefined;
}

function isWave(wave: unknown): boolean {
  if (typeof wave === "number") return Number.isInteger(wave) && wave >= 1;
  return typeof wave === "string" && /^([1-9]\d*|([1-9]\d?|100)%)$/.test(wave);
}

function isPattern(value: unknown): boolean {
  if (typeof value !== "string" || value === "") return false;
  try {
    return new RegExp(value, "m") !== undefined;
  } catch {
    return false;
  }
}
