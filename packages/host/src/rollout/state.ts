/** What is known of a rollout, and where it is kept so that another daemon can go on with it. */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { HostError, messageOf } from "../errors.ts";
import type { Rates } from "./health.ts";
import type { RolloutPlan } from "./plan.ts";

/**
 * running: a wave moves or soaks. paused: by the operator. interrupted: its daemon ended; 'resume' goes on. done: every wave is
 * healthy. failed: a wave was not, and was rolled back. aborted: by the operator.
 */
export type RolloutStatus = "running" | "paused" | "interrupted" | "done" | "failed" | "aborted";

/** stuck: it was to be rolled back, and that failed. gone: its process ended. */
export type RolloutVmState = "waiting" | "moved" | "healthy" | "rolled back" | "stuck" | "gone";

export interface RolloutVm {
  pid: number;
  name: string;
  /** Number of its wave, from 0. */
  wave: number;
  state: RolloutVmState;
  /** Why it is stuck, or what its wave was rolled back for. */
  reason?: string;
  blackoutUs?: number;
  before?: Rates;
  after?: Rates;
}

export interface RolloutState {
  format: 1;
  plan: RolloutPlan;
  /** Which run of the daemon its pids belong to. */
  host: string;
  status: RolloutStatus;
  phase: "baseline" | "moving" | "soaking" | "rolling back" | "finalizing" | "ended";
  /** The wave that is going on, from 0. */
  wave: number;
  waves: number;
  vms: RolloutVm[];
  /** What happened, oldest first. */
  events: { atMs: number; text: string }[];
}

export interface RolloutStore {
  load(): RolloutState | undefined;
  save(state: RolloutState): void;
}

/** One rollout in one file, replaced as a whole: a reader, or a crash in the middle, finds the old one or the new one. */
export function rolloutFile(path: string): RolloutStore {
  return {
    load() {
      let text: string;
      try {
        text = readFileSync(path, "utf8");
      } catch (thrown) {
        if ((thrown as NodeJS.ErrnoException).code === "ENOENT") return undefined;
        throw new HostError("EIO", `the rollout's state ${path} cannot be read: ${messageOf(thrown)}`);
      }
      let state: RolloutState;
      try {
        state = JSON.parse(text) as RolloutState;
      } catch {
        throw new HostError("EINVAL", `the rollout's state ${path} is damaged: look at 'mkvm ps', and remove the file`);
      }
      if (state.format !== 1)
        throw new HostError(
          "EINVAL",
          `the rollout's state ${path} has format ${state.format}, of another mkvm: finish it there`,
        );
      return state;
    },
    save(state) {
      writeFileSync(`${path}.new`, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
      renameSync(`${path}.new`, path);
    },
  };
}
