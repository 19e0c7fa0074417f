import { expect, it } from "vitest";
import { createIdleCollection } from "../src/worker/idle-collection.ts";

const MIB = 1 << 20;

/** A heap of which half is garbage at every collection. */
function heap() {
  const it = { used: 10 * MIB, busy: 0, collections: 0 };
  const check = createIdleCollection({
    utilization: () => it.busy,
    usedBytes: () => it.used,
    collect: () => {
      it.collections++;
      it.used /= 2;
    },
  });
  return { it, check };
}

it("collects once after a time of work, not while an idle guest allocates", () => {
  const { it: state, check } = heap();
  check();
  expect(state.collections).toBe(0);
  check();
  expect(state.collections).toBe(1);
  for (let i = 0; i < 10; i++) {
    state.used += 100 * MIB;
    check();
  }
  expect(state.collections).toBe(1);
});

it("collects again after more work only if there is something to gain", () => {
  const { it: state, check } = heap();
  const work = (mib: number): void => {
    state.busy = 0.5;
    state.used += mib * MIB;
    check();
    state.busy = 0.01;
    check();
    check();
  };
  work(0);
  expect(state.collections).toBe(1);
  work(3);
  expect(state.collections).toBe(1);
  work(1);
  expect(state.collections).toBe(2);
});

it("leaves a thread at work alone, however much it allocates", () => {
  const { it: state, check } = heap();
  state.busy = 0.5;
  state.used = 500 * MIB;
  for (let i = 0; i < 10; i++) check();
  expect(state.collections).toBe(0);
});
