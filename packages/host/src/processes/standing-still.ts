/** Work on a process while it stands still. */
import { HostError } from "../errors.ts";
import { alarm } from "../patience.ts";
import type { KernelProcess } from "./process.ts";

/** Runs `work` while every thread of the process is outside of modules, and waits. @throws what it throws */
export async function standingStill<Result>(process: KernelProcess, work: () => Promise<Result>): Promise<Result> {
  const { freezeMs } = process.kernel.moveLimits;
  let outcome: { result: Result } | { thrown: unknown } | undefined;
  const inTime = alarm(freezeMs, () => {
    const stuck = process.tasksInside().map(({ tid, name }) => `${tid} (${name})`);
    if (process.cancelFreeze())
      outcome = {
        thrown: new HostError("EBUSY", `thread ${stuck.join(", ")} did not come out of its module within ${freezeMs} ms`),
      };
  });
  await process.freeze(async () => {
    inTime();
    try {
      outcome = { result: await work() };
    } catch (thrown) {
      outcome = { thrown };
    }
  });
  inTime();
  if (outcome === undefined) throw new HostError("ESRCH", `process ${process.pid} ended`);
  if ("thrown" in outcome) throw outcome.thrown;
  return outcome.result;
}
