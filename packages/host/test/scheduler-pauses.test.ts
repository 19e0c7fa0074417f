/** A CPU on which nothing runs: for two reasons at once, it is as long as either holds. */
import { setImmediate as turn } from "node:timers/promises";
import { createLogicalCpu, createMachine } from "@mkvm/hw-x86";
import { expect, it } from "vitest";
import { CpuScheduler } from "../src/scheduler/scheduler.ts";

it("goes on when all who paused it have let it go on", async () => {
  const machine = createMachine({ cpus: 1 });
  const scheduler = new CpuScheduler(
    createLogicalCpu(machine, 0, () => undefined),
    machine,
  );
  let ran = false;
  const turns = async (): Promise<boolean> => {
    for (let count = 0; count < 5; count++) await turn();
    return ran;
  };
  scheduler.pause();
  scheduler.pause();
  scheduler.makeRunnable(() => {
    ran = true;
  });
  expect(await turns()).toBe(false);
  scheduler.unpause();
  expect(await turns()).toBe(false);
  scheduler.unpause();
  expect(await turns()).toBe(true);
  scheduler.stop();
});
