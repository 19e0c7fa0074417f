/** Control flow of regions: random graphs are put into WebAssembly's shape, which is checked against its definition. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { analyseFlow, type Flow } from "../src/engine/translator/flow.ts";
import type { RegionBlock } from "../src/engine/translator/region.ts";
import { chooseSeed } from "./random.ts";

function graph(edges: readonly (readonly number[])[]): RegionBlock[] {
  const blocks = edges.map((_, number): RegionBlock => {
    const at = { header: number + 1, page: 0, offset: number * 16 };
    return { ...at, count: 1, operations: [], ending: { kind: "return" }, successors: [] };
  });
  edges.forEach((targets, from) => {
    (blocks[from] as RegionBlock).successors = [...new Set(targets)].map((to) => blocks[to] as RegionBlock);
  });
  return blocks;
}

const isDispatcher = ({ ending }: RegionBlock): boolean => ending.kind === "dispatch";
const numberOf = (flow: Flow, block: RegionBlock): number => flow.order.get(block) as number;

/** Dominators by definition: what no path from the root reaches without the block. */
function dominatesByDefinition(flow: Flow, above: RegionBlock, below: RegionBlock): boolean {
  if (above === below) return true;
  const seen = new Set<RegionBlock>([above]);
  const queue = [flow.root];
  for (let block = queue.pop(); block; block = queue.pop()) {
    if (seen.has(block)) continue;
    if (block === below) return false;
    seen.add(block);
    queue.push(...block.successors);
  }
  return true;
}

/** What is in scope while the code of a block is placed as region-function.ts does: labels of loops around it and of merges to come. */
function labelsInScope(flow: Flow): Map<RegionBlock, ReadonlySet<RegionBlock>> {
  const scopes = new Map<RegionBlock, ReadonlySet<RegionBlock>>();
  const place = (block: RegionBlock, outer: ReadonlySet<RegionBlock>): void => {
    expect(scopes.has(block), "a block is placed once").toBe(false);
    const around = new Set(outer);
    if (flow.loopHeaders.has(block)) around.add(block);
    const merges = flow.dominated.get(block) ?? [];
    const scope = new Set([...around, ...merges]);
    scopes.set(block, scope);
    for (const next of block.successors) {
      const isForward = numberOf(flow, next) > numberOf(flow, block);
      if (isForward && !flow.merges.has(next)) place(next, scope);
    }
    merges.forEach((merge, index) => {
      place(merge, new Set([...around, ...merges.slice(index + 1)]));
    });
  };
  place(flow.root, new Set());
  return scopes;
}

function checkFlow(edges: readonly (readonly number[])[]): Flow {
  const blocks = graph(edges);
  const original = new Map(blocks.map((block) => [block, [...block.successors]]));
  const flow = analyseFlow([blocks[0] as RegionBlock]);

  // Nothing is lost and nothing is added but the dispatcher
  const reachable = new Set(reachableFrom(blocks[0] as RegionBlock, original));
  expect([...flow.order.keys()].filter((block) => !isDispatcher(block)).length).toBe(reachable.size);
  expect(flow.entries[0]).toBe(blocks[0]);

  const scopes = labelsInScope(flow);
  expect(scopes.size).toBe(flow.order.size);
  for (const [block, scope] of scopes) {
    for (const next of block.successors) {
      const isBack = numberOf(flow, next) <= numberOf(flow, block);
      if (isBack) {
        expect(flow.loopHeaders.has(next), "an edge back goes to a loop's header").toBe(true);
        expect(dominatesByDefinition(flow, next, block), "which dominates where it comes from").toBe(true);
      }
      if (isBack || flow.merges.has(next)) expect(scope.has(next), "the label that a branch goes to is around it").toBe(true);
    }
  }

  for (const block of reachable) {
    for (const next of original.get(block) as RegionBlock[]) {
      const dispatched = block.successors.some(isDispatcher) && flow.entries.includes(next);
      expect(block.successors.includes(next) || dispatched, "every edge is there, or goes through the dispatcher").toBe(true);
    }
    const added = block.successors.filter(
      (next) => !isDispatcher(next) && !(original.get(block) as RegionBlock[]).includes(next),
    );
    expect(added, "and no other").toEqual([]);
  }
  return flow;
}

function reachableFrom(head: RegionBlock, successors: ReadonlyMap<RegionBlock, readonly RegionBlock[]>): RegionBlock[] {
  const seen = new Set<RegionBlock>([head]);
  for (const block of seen) for (const next of successors.get(block) ?? []) seen.add(next);
  return [...seen];
}

describe("control flow of a region", () => {
  test.each([
    ["one block", [[]], 0, false],
    ["a block that loops to itself", [[0]], 1, false],
    ["a diamond", [[1, 2], [3], [3], []], 0, false],
    ["a loop in a loop", [[1], [2], [2, 3], [1, 4], []], 2, false],
    ["a loop entered in the middle", [[1, 2], [2], [1]], undefined, true],
    [
      "a loop of the head, entered in the middle too",
      [
        [1, 2],
        [2, 0],
        [1, 0],
      ],
      undefined,
      true,
    ],
  ] as const)("%s", (_, edges, loops, dispatches) => {
    const flow = checkFlow(edges);
    if (loops !== undefined) expect(flow.loopHeaders.size).toBe(loops);
    expect(isDispatcher(flow.root)).toBe(dispatches);
    expect(flow.entries.length > 1).toBe(dispatches);
  });

  const seed = chooseSeed();
  test(`random graphs (seed ${seed})`, () => {
    const edges = fc
      .integer({ min: 1, max: 14 })
      .chain((count) => fc.array(fc.array(fc.nat(count - 1), { maxLength: 4 }), { minLength: count, maxLength: count }));
    fc.assert(
      fc.property(edges, (made) => {
        checkFlow(made);
      }),
      { seed, numRuns: 1500 },
    );
  });
});
