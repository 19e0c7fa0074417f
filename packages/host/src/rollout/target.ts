/** What a rollout needs of a host. */
import type { Host } from "../control/host.ts";
import type { ExitStatus, MoveReport, ProcessInfo } from "../control/types.ts";
import { type Counts, countsOf } from "./health.ts";

export interface RolloutTarget {
  /** Differs from run to run of the daemon, in each of which pids begin anew. */
  readonly instance: string;
  processes(): Promise<ProcessInfo[]>;
  /** Why the VM could not move now; null when it could. */
  blocker(pid: number, to: string): Promise<string | null>;
  upgrade(pid: number, to: string): Promise<MoveReport>;
  rollback(pid: number): Promise<MoveReport>;
  finalize(pid: number): Promise<unknown>;
  counts(pid: number): Promise<Counts>;
  /** How the process ended; undefined while it runs. */
  ended(pid: number): Promise<ExitStatus | undefined>;
  /** CPUs that do not answer: what is on them is not among the processes. */
  silentCpus(): Promise<number[]>;
  /** Looks for a pattern in what the console shows from now on. */
  watchConsole(pid: number, pattern: RegExp): { seen(): boolean; stop(): void };
}

export interface RolloutClock {
  nowMs(): number;
  /** Resolves after so long, or when `signal` aborts. */
  wait(durationMs: number, signal: AbortSignal): Promise<void>;
}

export const wallClock: RolloutClock = {
  nowMs: () => Date.now(),
  wait: (durationMs, signal) =>
    new Promise((resolve) => {
      if (signal.aborted) return resolve();
      const finish = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", finish);
        resolve();
      };
      const timer = setTimeout(finish, durationMs);
      signal.addEventListener("abort", finish);
    }),
};

/** The longest line that a pattern is looked for in. */
const longestLine = 4096;

export function hostTarget(host: Host, instance: string): RolloutTarget {
  return {
    instance,
    processes: () => host.ps(),
    silentCpus: async () => (await host.cpus()).filter(({ state }) => state === "silent").map(({ cpu }) => cpu),
    blocker: (pid, to) => host.checkUpgrade({ pid, to }),
    upgrade: async (pid, to) => (await host.upgrade({ pid, to }))[0]!,
    rollback: (pid) => host.rollback(pid),
    finalize: (pid) => host.finalize(pid),
    counts: async (pid) => countsOf(await host.statistics(pid)),
    // What `ps` does not show may be on a CPU that hangs
    ended: async (pid) => Promise.race([host.process(pid).exited, undefined]),
    watchConsole(pid, pattern) {
      let seen = false;
      let rest = "";
      let live = false;
      const decoder = new TextDecoder();
      const stop = host.process(pid).onOutput((bytes) => {
        if (!live || seen) return;
        rest = (rest + decoder.decode(bytes, { stream: true })).slice(-longestLine);
        seen = pattern.test(rest);
      });
      live = true;
      return { seen: () => seen, stop };
    },
  };
}
