import type { LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel } from "@mkvm/kvm-abi";
import type { Vac } from "@mkvm/vac";
import { expect, test } from "vitest";
import { HaltPolling } from "../src/halt-polling.ts";

/** Only what polling uses: a clock that goes on by `step` at each look at the scheduler. */
function kernel(step: number, alone = true): { kernel: Kernel<Vac, LogicalCpu>; yields: () => number } {
  let now = 0;
  let yields = 0;
  const part: Pick<Kernel<Vac, LogicalCpu>, "scheduler" | "clock"> = {
    clock: {
      monotonicNs: () => now,
      realtimeNs: () => 0n,
      createTimer: () => {
        throw new Error("polling needs no timer");
      },
    },
    scheduler: {
      handleInterrupts: () => undefined,
      needResched: () => false,
      singleTaskRunning: () => alone,
      yield: async () => {
        yields++;
        now += step;
      },
      createWaitQueue: () => {
        throw new Error("polling does not block");
      },
    },
  };
  return { kernel: part as Kernel<Vac, LogicalCpu>, yields: () => yields };
}

/** What was counted, as [ns, success]. */
function counting(): { polled: (ns: number, success: boolean) => void; polls: [number, boolean][] } {
  const polls: [number, boolean][] = [];
  return { polls, polled: (ns, success) => polls.push([ns, success]) };
}

test("polling grows with short halts, ends after long ones, and is bounded", async () => {
  const { kernel: fake, yields } = kernel(1_000);
  const statistics = counting();
  const polling = new HaltPolling(fake, 30_000, statistics);
  expect(await polling.poll(() => false)).toBe(false);
  expect(yields()).toBe(0);
  expect(statistics.polls).toEqual([]);
  polling.learn(20_000);
  await polling.poll(() => false);
  expect(yields()).toBe(10);
  expect(statistics.polls).toEqual([[10_000, false]]);
  polling.learn(25_000);
  polling.learn(29_000);
  await polling.poll(() => false);
  expect(yields()).toBe(40);
  polling.learn(50_000);
  await polling.poll(() => false);
  expect(yields()).toBe(40);
});

test("there is no polling while somebody else could run", async () => {
  const { kernel: fake, yields } = kernel(1_000, false);
  const statistics = counting();
  const polling = new HaltPolling(fake, 30_000, statistics);
  polling.learn(20_000);
  expect(await polling.poll(() => false)).toBe(false);
  expect(yields()).toBe(0);
  expect(statistics.polls).toEqual([]);
});

test("polling ends when the vCPU wakes, and at once where the clock stands still", async () => {
  const moving = kernel(1_000);
  const statistics = counting();
  const polling = new HaltPolling(moving.kernel, 30_000, statistics);
  polling.learn(20_000);
  let looks = 0;
  expect(await polling.poll(() => ++looks === 3)).toBe(true);
  expect(statistics.polls).toEqual([[3_000, true]]);
  const still = kernel(0);
  const icount = new HaltPolling(still.kernel, 30_000, counting());
  icount.learn(20_000);
  expect(await icount.poll(() => false)).toBe(false);
  expect(still.yields()).toBe(1);
});
