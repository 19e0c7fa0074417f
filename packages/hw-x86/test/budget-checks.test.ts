/** Where regions check the budget: no path runs out of what the last check asked for. */
import { describe, expect, test } from "vitest";
import { MOST_UNCHECKED, planBudgetChecks } from "../src/engine/translator/budget-checks.ts";
import { analyseFlow } from "../src/engine/translator/flow.ts";
import type { RegionBlock } from "../src/engine/translator/region.ts";
import { unrollLoops } from "../src/engine/translator/unrolling.ts";
import { chooseSeed, seededRandom } from "./random.ts";

function block(offset: number, count: number): RegionBlock {
  const ending = { kind: "branch", taken: 0, next: 0 } as const;
  return { header: offset, offset, page: 0, count, operations: [], ending, successors: [] };
}

describe("checks of the budget", () => {
  test("one serves a chain, up to the most that may go unchecked and no further", () => {
    const blocks = [block(0, 2), block(10, MOST_UNCHECKED - 2), block(20, 1)];
    blocks[0].successors = [blocks[1]];
    blocks[1].successors = [blocks[2]];
    const checks = planBudgetChecks(analyseFlow([blocks[0]]));
    expect(checks.get(blocks[0])).toBe(MOST_UNCHECKED);
    expect(checks.has(blocks[1])).toBe(false);
    expect(checks.get(blocks[2])).toBe(1);
  });
  test("a loop checks at its head, for the longer of its ways", () => {
    const blocks = [block(0, 1), block(10, 3), block(20, 5), block(30, 2)];
    blocks[0].successors = [blocks[1], blocks[2]];
    blocks[1].successors = [blocks[3]];
    blocks[2].successors = [blocks[3]];
    blocks[3].successors = [blocks[0]];
    expect([...planBudgetChecks(analyseFlow([blocks[0]]))]).toEqual([[blocks[0], 8]]);
  });
  test("small loops of one block are repeated, and check once; large ones are not", () => {
    const small = block(0, 4);
    small.successors = [small, block(10, 1)];
    unrollLoops([small]);
    const flow = analyseFlow([small]);
    expect([...flow.order.keys()].filter(({ offset }) => offset === 0)).toHaveLength(4);
    expect(flow.loopHeaders.size).toBe(1);
    expect(planBudgetChecks(flow).get(small)).toBe(17);
    // Two rounds would be more than 32 instructions
    const large = block(0, 17);
    large.successors = [large];
    unrollLoops([large]);
    expect(large.successors).toEqual([large]);
  });

  const seed = chooseSeed();
  test(`every path has what it needs (seed ${seed})`, () => {
    const random = seededRandom(seed);
    for (let round = 0; round < 200; round++) {
      const blocks = Array.from({ length: 2 + random.below(14) }, (_, i) => block(i * 10, 1 + random.below(12)));
      for (const from of blocks) {
        from.successors = [...new Set(Array.from({ length: random.below(3) }, () => random.pick(blocks)))];
      }
      unrollLoops(blocks);
      const flow = analyseFlow([blocks[0]]);
      const checks = planBudgetChecks(flow);
      let at = flow.root;
      let left = 0;
      for (let step = 0; step < 200; step++) {
        left = checks.get(at) ?? left;
        left -= at.count;
        expect(left).toBeGreaterThanOrEqual(0);
        if (at.successors.length === 0) break;
        at = random.pick(at.successors);
      }
    }
  });
});
