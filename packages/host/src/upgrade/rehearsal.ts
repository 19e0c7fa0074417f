/**
 * A rehearsal of what a VM stands still for, while it runs: its state is saved, restored into an incoming VM that is thrown away,
 * and saved again. What would be refused is refused before anything has stopped, and code that has not run yet is warm afterwards.
 */
import type { File, IncomingVm, SectionSupport } from "@mkvm/kvm-abi";
import { messageOf } from "../errors.ts";
import type { LoadedInstance } from "../loader/module-instances.ts";
import { restoreProblem, sectionsProblem } from "./answers.ts";
import { firstDifference } from "./sections.ts";

/** Cold code takes many times as long; after this often V8 has seen enough of it. */
const mostRounds = 6;
/** What a VM of one vCPU stands still for when all is warm. More rounds gain nothing below. */
const warmMs = 0.3;
/** A round that is no faster than this share of the one before tells that the rest is work. */
const stillGains = 0.8;

export interface RehearsalProblem {
  /** The step of a move in which it would have come up. */
  readonly step: "save" | "restore" | "verify";
  readonly reason: string;
  /** What was thrown, where that is it. */
  readonly thrown?: unknown;
}

/** One look at how long it takes, in ms, or what is wrong. Synchronous: the VM's threads are all between two slices. */
export function rehearseOnce(
  from: LoadedInstance,
  to: LoadedInstance,
  vm: File,
  level: readonly SectionSupport[],
  spare: IncomingVm,
): number | RehearsalProblem {
  const began = performance.now();
  let step: RehearsalProblem["step"] = "save";
  const refused = (module: LoadedInstance, problem: string): RehearsalProblem => ({
    step,
    reason: `${module.name}: ${problem}`,
  });
  try {
    const sections = from.instance.transfer.save(vm, level);
    const unsaved = sectionsProblem("save", sections);
    if (unsaved) return refused(from, unsaved);
    step = "restore";
    const answer = spare.restore(sections);
    const unanswered = restoreProblem(answer);
    if (unanswered) return refused(to, unanswered);
    if (answer !== undefined) return { step, reason: answer };
    step = "verify";
    const again = spare.save();
    const unsavedAgain = sectionsProblem("save", again);
    if (unsavedAgain) return refused(to, unsavedAgain);
    const difference = firstDifference(sections, again);
    if (difference) return { step, reason: `${to.name} restored another state: ${difference}` };
  } catch (thrown) {
    return { step, reason: messageOf(thrown), thrown };
  }
  return performance.now() - began;
}

/** Ways between modules that have been rehearsed: their code is warm. */
const warmWays = new WeakMap<LoadedInstance, Set<LoadedInstance>>();

/** A VM has gone that way before: the rehearsal just before the freeze is enough. */
export function isWarm(from: LoadedInstance, to: LoadedInstance): boolean {
  return warmWays.get(from)?.has(to) ?? false;
}

/** Whether another round would make the move itself faster. */
export function wantsAnotherRound(from: LoadedInstance, to: LoadedInstance, timesMs: readonly number[]): boolean {
  const last = timesMs.at(-1)!;
  const before = timesMs.at(-2) ?? Number.POSITIVE_INFINITY;
  if (last > warmMs && timesMs.length < mostRounds && last < before * stillGains) return true;
  warmWays.set(from, (warmWays.get(from) ?? new Set()).add(to));
  return false;
}

/** How many times longer the VM runs than its CPU has worked on a piece, up to the longest pause: for the last rehearsal as well. */
const pauseShare = 20;
/** The longest of such pauses: prepare is to end soon all the same. */
const longestPauseMs = 20;

/** Leaves the CPU to VMs after `workedMs` was taken from them, for `share` times as long. */
export function leaveCpuToVms(workedMs: number, share = pauseShare): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.min(longestPauseMs, workedMs * share)));
}
