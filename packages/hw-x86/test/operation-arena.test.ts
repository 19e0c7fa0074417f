/** Room for decoded code: what is given back is taken again, and nothing is in use twice. */
import { describe, expect, test } from "vitest";
import { OP_ARENA, OP_ARENA_BYTES } from "../src/engine/cpu-state.ts";
import { OP_BYTES } from "../src/engine/operation.ts";
import { OperationArena } from "../src/engine/operation-arena.ts";
import { chooseSeed, seededRandom } from "./random.ts";

describe("the arena of operations", () => {
  test("takes what was given back first, whole or cut, but leaves no rest that nothing fits into", () => {
    const arena = new OperationArena(0);
    const first = arena.take(10);
    const second = arena.take(4);
    expect([first, second]).toEqual([OP_ARENA, OP_ARENA + 10 * OP_BYTES]);
    arena.giveBack(first, 10);
    expect(arena.used).toBe(4 * OP_BYTES);
    expect(arena.take(8)).toBe(second + 4 * OP_BYTES);
    expect(arena.take(6)).toBe(first);
    expect(arena.take(4)).toBe(first + 6 * OP_BYTES);
    expect(arena.used).toBe(22 * OP_BYTES);
  });
  test("says when it is full", () => {
    const records = OP_ARENA_BYTES / OP_BYTES;
    const arena = new OperationArena(5);
    expect(arena.take(records - 5)).toBe(OP_ARENA);
    expect([arena.room(1), arena.take(1)]).toEqual([0, 0]);
    arena.clear();
    expect(arena.room(1)).toBe(OP_ARENA);
  });
  const seed = chooseSeed();
  test(`has nothing in use twice (seed ${seed})`, () => {
    const random = seededRandom(seed);
    const arena = new OperationArena(0);
    const taken: { at: number; records: number }[] = [];
    const owner = new Uint8Array(4096);
    const mark = (at: number, records: number, from: number, to: number): void => {
      for (let i = (at - OP_ARENA) / OP_BYTES; records > 0; records--, i++) {
        expect(owner[i]).toBe(from);
        owner[i] = to;
      }
    };
    let used = 0;
    for (let step = 0; step < 3000; step++) {
      if (taken.length > 60 || (taken.length > 0 && random.oneIn(3))) {
        const [{ at, records }] = taken.splice(random.below(taken.length), 1) as [{ at: number; records: number }];
        mark(at, records, 1, 0);
        arena.giveBack(at, records);
        used -= records * OP_BYTES;
      } else {
        const records = 3 + random.below(30);
        const at = arena.take(records);
        mark(at, records, 0, 1);
        taken.push({ at, records });
        used += records * OP_BYTES;
      }
      expect(arena.used).toBe(used);
    }
  });
});
