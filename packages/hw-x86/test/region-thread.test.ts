/** Regions that another thread translates: until they are there the interpreter goes on, and what changed meanwhile is not run. */
import { expect, it } from "vitest";
import {
  type RegionAnswer,
  type RegionRequest,
  type RegionThread,
  translateRegion,
} from "../src/engine/translator/region-thread.ts";
import { CODE, ROUNDS, runLoop, writeLoop } from "./calling-loop.ts";
import { createFlatMachine, FLAT_MODEL, type FlatMachine } from "./flat-machine.ts";

/** A thread that translates when it is told to. What it is asked is copied, as on the way to another. */
class SlowThread implements RegionThread {
  readonly asked: { region: RegionRequest; answer: (code: RegionAnswer) => void }[] = [];
  readonly #made: (() => void)[] = [];

  request(region: RegionRequest, answer: (code: RegionAnswer) => void): void {
    this.asked.push({ region: structuredClone(region), answer });
  }
  poll(): void {
    for (const hand of this.#made.splice(0)) hand();
  }
  work(): void {
    for (const { region, answer } of this.asked.splice(0)) {
      const code = translateRegion(region);
      this.#made.push(() => answer(code));
    }
  }
}

/** Adds `adds` to RAX in each round of a loop that calls a function. */
function machineWithLoop(): { m: FlatMachine; thread: SlowThread; run: () => bigint; adds: (value: number) => void } {
  const thread = new SlowThread();
  const m = createFlatMachine(64, 16 << 20, "hot", FLAT_MODEL, undefined, thread);
  const callee = CODE + 0x100;
  writeLoop(m, callee);
  m.ram.set([0x83, 0xc0, 1, 0xc3], callee);
  const run = (): bigint => runLoop(m);
  return { m, thread, run, adds: (value) => m.engine.writeLinear(BigInt(callee + 2) as never, 1, BigInt(value), true) };
}
const regions = ({ engine }: FlatMachine) => engine.counts().translator;

it("goes on in the interpreter until the code is there", () => {
  const { m, thread, run } = machineWithLoop();
  expect(run()).toBe(BigInt(ROUNDS));
  expect(thread.asked.length).toBeGreaterThan(0);
  expect(run()).toBe(BigInt(ROUNDS));
  expect(regions(m).regionsMade).toBe(0);
  thread.work();
  expect(run()).toBe(BigInt(ROUNDS));
  expect(regions(m).regionsInUse).toBeGreaterThan(0);
});

it("asks once for what is hot together, while it waits", () => {
  const { thread, run } = machineWithLoop();
  run();
  const heads = thread.asked.map(({ region }) => region.blocks.map(({ header }) => header));
  // The loop has three blocks, which become hot at once
  expect(heads[0]?.length).toBe(3);
  expect(heads.length).toBe(1);
});

it("does not run code of what was written meanwhile, and asks anew", () => {
  const { m, thread, run, adds } = machineWithLoop();
  run();
  adds(7);
  thread.work();
  expect(run()).toBe(7n * BigInt(ROUNDS));
  expect(regions(m).regionsMade).toBe(0);
  expect(thread.asked.length).toBeGreaterThan(0);
  thread.work();
  expect(run()).toBe(7n * BigInt(ROUNDS));
  expect(regions(m).regionsInUse).toBeGreaterThan(0);
  adds(3);
  expect(regions(m).regionsInUse).toBe(0);
  expect(run()).toBe(3n * BigInt(ROUNDS));
});

it("counts what waits no longer when it has been answered", () => {
  const { thread, run, adds } = machineWithLoop();
  // Each time it is written, it is asked for again; the page then changes too often to be translated
  const asked: number[] = [];
  for (let value = 1; value <= 30; value++) {
    adds(value);
    expect(run()).toBe(BigInt(value) * BigInt(ROUNDS));
    asked.push(thread.asked.length);
    thread.work();
  }
  expect(asked[5]).toBeGreaterThan(0);
  expect(asked.at(-1)).toBe(0);
});
