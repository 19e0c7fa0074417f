/**
 * Where a region looks whether the budget lasts. Every block charges for its instructions, so that what has retired is known
 * exactly wherever the region is left; but only some blocks ask first, for all that may run until the next one asks.
 */
import type { Flow } from "./flow.ts";
import type { RegionBlock } from "./region.ts";

/**
 * Most instructions that a block without a check may have behind the last check. What the check finds too little for is
 * interpreted, at every end of a budget, so this must not be many.
 */
export const MOST_UNCHECKED = 64;

/** Of the blocks that check: the budget that they need, so that none runs out before the next check. */
export function planBudgetChecks({ root, entries, order, loopHeaders }: Flow): ReadonlyMap<RegionBlock, number> {
  const blocks = [...order.keys()];
  const isForward = (from: RegionBlock, to: RegionBlock): boolean => (order.get(from) as number) < (order.get(to) as number);
  const checks = new Set<RegionBlock>([root, ...entries, ...loopHeaders]);
  /** Most instructions since the last check, the block's own included. */
  const since = new Map<RegionBlock, number>();
  const before = new Map<RegionBlock, number>();
  for (const block of blocks) {
    const uncheckedBefore = before.get(block) ?? 0;
    if (uncheckedBefore + block.count > MOST_UNCHECKED) checks.add(block);
    since.set(block, checks.has(block) ? block.count : uncheckedBefore + block.count);
    for (const next of block.successors) {
      if (isForward(block, next)) before.set(next, Math.max(before.get(next) ?? 0, since.get(block) as number));
    }
  }
  const needs = new Map<RegionBlock, number>();
  for (const block of blocks.reverse()) {
    let behind = 0;
    for (const next of block.successors) if (!checks.has(next)) behind = Math.max(behind, needs.get(next) as number);
    needs.set(block, block.count + behind);
  }
  for (const block of blocks) if (!checks.has(block)) needs.delete(block);
  return needs;
}
