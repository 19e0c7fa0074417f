/**
 * Control flow of a region in the shape that WebAssembly has: every loop is entered at its header, and every block that several
 * others go forward to is placed behind the block that dominates it. (After N. Ramsey, "Beyond Relooper", 2022.)
 */
import type { RegionBlock } from "./region.ts";

export interface Flow {
  /** The first block: the head, or the block that dispatches to the entries. */
  readonly root: RegionBlock;
  /** Blocks at which the region can be entered. */
  readonly entries: readonly RegionBlock[];
  /** Reachable blocks in reverse postorder, by which edges go forward or back. */
  readonly order: ReadonlyMap<RegionBlock, number>;
  readonly loopHeaders: ReadonlySet<RegionBlock>;
  /** Blocks that more than one other goes forward to. */
  readonly merges: ReadonlySet<RegionBlock>;
  /** Of each block, the merges that it dominates immediately, in reverse postorder. */
  readonly dominated: ReadonlyMap<RegionBlock, readonly RegionBlock[]>;
  /** Loops around each block. */
  readonly depth: ReadonlyMap<RegionBlock, number>;
}

function reversePostorder(head: RegionBlock): RegionBlock[] {
  const seen = new Set<RegionBlock>([head]);
  const done: RegionBlock[] = [];
  const visit = (block: RegionBlock): void => {
    for (const next of block.successors) {
      if (seen.has(next)) continue;
      seen.add(next);
      visit(next);
    }
    done.push(block);
  };
  visit(head);
  return done.reverse();
}

/** Number of the immediate dominator of each block, by number in reverse postorder. */
function immediateDominators(blocks: readonly RegionBlock[], order: ReadonlyMap<RegionBlock, number>): Int32Array {
  const predecessors: number[][] = blocks.map(() => []);
  blocks.forEach((block, number) => {
    for (const next of block.successors) predecessors[order.get(next) as number]?.push(number);
  });
  const dominator = new Int32Array(blocks.length).fill(-1);
  dominator[0] = 0;
  for (let changed = true; changed; ) {
    changed = false;
    for (let number = 1; number < blocks.length; number++) {
      let common = -1;
      for (const predecessor of predecessors[number] as number[]) {
        if (dominator[predecessor] === -1) continue;
        if (common === -1) {
          common = predecessor;
          continue;
        }
        let other = predecessor;
        while (other !== common) {
          while (other > common) other = dominator[other];
          while (common > other) common = dominator[common];
        }
      }
      if (common !== dominator[number]) {
        dominator[number] = common;
        changed = true;
      }
    }
  }
  return dominator;
}

function dominates(dominator: Int32Array, above: number, below: number): boolean {
  let at = below;
  while (at > above) at = dominator[at];
  return at === above;
}

/** Number of loops that each block is in, the loops of one header counted as one. */
function loopDepths(blocks: readonly RegionBlock[], order: ReadonlyMap<RegionBlock, number>): Map<RegionBlock, number> {
  const predecessors = new Map<RegionBlock, RegionBlock[]>(blocks.map((block) => [block, []]));
  for (const block of blocks) for (const next of block.successors) predecessors.get(next)?.push(block);
  const depth = new Map<RegionBlock, number>(blocks.map((block) => [block, 0]));
  blocks.forEach((header, number) => {
    const latches = (predecessors.get(header) as RegionBlock[]).filter((from) => (order.get(from) as number) >= number);
    if (latches.length === 0) return;
    const body = new Set([header, ...latches]);
    for (const block of body) {
      depth.set(block, (depth.get(block) as number) + 1);
      if (block !== header) for (const from of predecessors.get(block) as RegionBlock[]) body.add(from);
    }
  });
  return depth;
}

/** A block without instructions that goes to any of the region's entries; the first is the head. */
function createDispatcher(entries: readonly RegionBlock[]): RegionBlock {
  return { header: 0, offset: -1, page: 0, count: 0, operations: [], ending: { kind: "dispatch" }, successors: [...entries] };
}

/**
 * `entries`: the head, and where else the region is to be entered. Where there are several, a dispatching block comes first. Edges into the middle of a loop, which WebAssembly cannot express, go through it too: it has
 * their targets as entries of their own; in the successors of their sources it takes the targets' places.
 */
export function analyseFlow(entries: readonly [RegionBlock, ...RegionBlock[]]): Flow {
  const [head] = entries;
  let dispatcher = entries.length > 1 ? createDispatcher(entries) : undefined;
  for (;;) {
    const root = dispatcher ?? head;
    const blocks = reversePostorder(root);
    const order = new Map(blocks.map((block, number) => [block, number]));
    const dominator = immediateDominators(blocks, order);
    let isReducible = true;
    blocks.forEach((block, number) => {
      for (const next of block.successors) {
        const to = order.get(next) as number;
        if (to > number || dominates(dominator, to, number)) continue;
        isReducible = false;
        dispatcher ??= createDispatcher([head]);
        const through = dispatcher;
        if (!through.successors.includes(next)) through.successors.push(next);
        block.successors = [...new Set(block.successors.map((other) => (other === next ? through : other)))];
      }
    });
    if (!isReducible) continue;

    const loopHeaders = new Set<RegionBlock>();
    const merges = new Set<RegionBlock>(dispatcher?.successors);
    const entered = new Set<RegionBlock>();
    blocks.forEach((block, number) => {
      for (const next of block.successors) {
        if ((order.get(next) as number) <= number) loopHeaders.add(next);
        else if (entered.has(next)) merges.add(next);
        else entered.add(next);
      }
    });
    const dominated = new Map<RegionBlock, RegionBlock[]>(blocks.map((block) => [block, []]));
    blocks.forEach((block, number) => {
      if (merges.has(block)) dominated.get(blocks[dominator[number]] as RegionBlock)?.push(block);
    });
    const depth = loopDepths(blocks, order);
    return { root, entries: dispatcher?.successors ?? [head], order, loopHeaders, merges, dominated, depth };
  }
}
