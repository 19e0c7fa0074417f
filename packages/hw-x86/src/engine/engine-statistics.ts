/** What an engine tells about its work, and how to read a sampling profile of the thread that it runs on. */
import type { BlockStatistics } from "./blocks.ts";
import type { ENGINE_IMPORTS } from "./interpreter/common-functions.ts";
import { REGION_FUNCTION } from "./translator/region-module.ts";
import type { TranslateMode, TranslatorStatistics } from "./translator/translator.ts";

/** Basic exit reasons (SVM: exit codes, as counted) that an engine counts are below this. */
export const EXIT_REASONS = 256;

/** Counts since the engine was made, which is when its bank's first guest ran. */
export interface EngineStatistics {
  /** What is translated. */
  readonly mode: TranslateMode;
  readonly translator: TranslatorStatistics;
  /** What the interpreter runs. */
  readonly blocks: BlockStatistics;
  /** VM exits by name of the basic exit reason, the most frequent first. */
  readonly exits: readonly { readonly reason: string; readonly count: number }[];
}

/** What the engine itself counts. */
export type EngineCounts = Omit<EngineStatistics, "exits">;

/** What a thread that runs guests spends its time on inside of the hardware. */
export type EnginePart = "translated" | "interpreter" | "memory" | "blocks" | "translating" | "helpers" | "events";

/** Functions that generated code calls, as they are named in stack traces. */
const CALLED_BY_GENERATED_CODE: Readonly<Record<keyof typeof ENGINE_IMPORTS, EnginePart>> = {
  readSlow: "memory",
  writeSlow: "memory",
  rmwSlow: "memory",
  rmwFinish: "memory",
  segmentSlow: "memory",
  regionRead: "memory",
  regionUpdate: "memory",
  regionWrite: "memory",
  findBlock: "blocks",
  hot: "translating",
  raise: "events",
  undefinedInstruction: "events",
  divert: "helpers",
  regionResume: "interpreter",
};

const byName = new Map<string, EnginePart>([
  ...(Object.entries(CALLED_BY_GENERATED_CODE) as [string, EnginePart][]),
  // Helpers of the semantics table, which the engine wraps one by one
  ["helpers.<computed>", "helpers"],
  ["deliverEvent", "events"],
]);

/**
 * The part of the engine that a stack frame of a sampling profile belongs to; undefined when the frames around it decide. `name` and
 * `url` as V8 gives them: the innermost frame that has a part decides for its stack.
 */
export function enginePartOfFrame(name: string, url: string): EnginePart | undefined {
  if (url.startsWith("wasm://")) return name === REGION_FUNCTION ? "translated" : "interpreter";
  return byName.get(name);
}
