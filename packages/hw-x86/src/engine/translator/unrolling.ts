/**
 * Loops of one small block are repeated in the region, so that one check of the budget, and the host's own at the head of every
 * loop, serve several rounds.
 */
import type { RegionBlock } from "./region.ts";

const MOST_ROUNDS = 4;
/** Of all rounds. */
const MOST_INSTRUCTIONS = 32;

/** Changes the successors of blocks that lead to themselves: through copies of themselves, which are in no list of blocks. */
export function unrollLoops(blocks: readonly RegionBlock[]): void {
  for (const block of blocks) {
    const rounds = Math.min(MOST_ROUNDS, Math.floor(MOST_INSTRUCTIONS / Math.max(block.count, 1)));
    if (rounds < 2 || block.ending.kind !== "branch" || !block.successors.includes(block)) continue;
    let next = block;
    for (let round = 1; round < rounds; round++) {
      next = { ...block, successors: block.successors.map((to) => (to === block ? next : to)) };
    }
    block.successors = block.successors.map((to) => (to === block ? next : to));
  }
}
