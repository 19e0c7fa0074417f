/** What a CPU's thread spends its time on, from a sampling profile of it. */
import type { Profiler } from "node:inspector";
import { type EnginePart, enginePartOfFrame } from "@mkvm/hw-x86";
import type { TimePart } from "../control/types.ts";

/** Entry files whose packages the parts outside of the engine are. */
export interface ProfileSources {
  readonly hardware: string;
  readonly kernel: readonly string[];
  readonly modules: readonly string[];
  readonly programs: readonly string[];
}

/** Names that V8 gives to what is no function. */
const ownNames: Readonly<Record<string, TimePart>> = {
  "(idle)": "idle",
  "(garbage collector)": "garbage",
  "(program)": "other",
};

type Frame = Profiler.ProfileNode["callFrame"];

/** Adds the time of each part in a profile to `timesUs`, in microseconds. */
export function addTimes(profile: Profiler.Profile, sources: ProfileSources, timesUs: Map<TimePart, number>): void {
  const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
  const parents = new Map<number, number>();
  for (const { id, children } of profile.nodes) for (const child of children ?? []) parents.set(child, id);
  const parts = new Map<number, TimePart>();
  const partOf = (id: number): TimePart => {
    const known = parts.get(id);
    if (known) return known;
    const stack: Frame[] = [];
    for (let at: number | undefined = id; at !== undefined; at = parents.get(at)) {
      const node = nodes.get(at);
      if (node) stack.push(node.callFrame);
    }
    const part = partOfStack(stack, sources);
    parts.set(id, part);
    return part;
  };
  const { samples = [], timeDeltas = [] } = profile;
  samples.forEach((id, index) => {
    // A sample stands for the time up to the next one
    const part = partOf(id);
    timesUs.set(part, (timesUs.get(part) ?? 0) + Math.max(0, timeDeltas[index + 1] ?? 0));
  });
}

/** The part of one stack, innermost frame first. */
export function partOfStack(stack: readonly Frame[], sources: ProfileSources): TimePart {
  const [leaf] = stack;
  if (!leaf) return "other";
  const own = ownNames[leaf.functionName];
  if (own) return own;
  for (const { functionName, url } of stack) {
    const part: EnginePart | undefined = isOfEngine(url, sources) ? enginePartOfFrame(functionName, url) : undefined;
    if (part) return part;
  }
  for (const { url } of stack) {
    if (isIn(url, [sources.hardware])) return "vmx";
    if (isIn(url, sources.modules)) return "module";
    if (isIn(url, sources.programs)) return "program";
    if (isIn(url, sources.kernel)) return "kernel";
  }
  return "other";
}

const isOfEngine = (url: string, sources: ProfileSources): boolean =>
  url.startsWith("wasm://") || isIn(url, [sources.hardware]);

/** True of a file in the folder of one of the entry files, or below. */
function isIn(url: string, entries: readonly string[]): boolean {
  return url !== "" && entries.some((entry) => url.startsWith(new URL(".", entry).href));
}
