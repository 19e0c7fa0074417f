/**
 * Code outside flat segments: RIP has less room than linear addresses have. It wraps at the operand size, must not pass the limit
 * of CS, and does not begin with a page where the base of CS does not. A region holds what can be reached without any of that, and
 * is entered only where the same is true again, since the same code may be entered through another CS.
 */
import { CS, SEG_LIMIT, segmentOffset } from "../cpu-state.ts";
import type { Code } from "../wasm/code.ts";
import type { CodeSize, RegionBlock } from "./region.ts";

/** Distances from the start of the head's page, in bytes, both inclusive. They may lie outside of the page. */
export interface CodeRange {
  readonly least: number;
  readonly most: number;
}

const LARGEST_IP = 0xffff;

/** What RIP can reach, as long as CS is the same, when the page begins at that RIP, which may be below 0. */
export function reachOf(pageRip: number, codeSize: CodeSize, limit: number): CodeRange {
  return { least: -pageRip, most: (codeSize === 16 ? Math.min(limit, LARGEST_IP) : limit) - pageRip };
}

export function isInRange({ least, most }: CodeRange, distance: number): boolean {
  return distance >= least && distance <= most;
}

/** The part of `reach` that the blocks lie in and lead to. */
export function rangeOf(blocks: readonly RegionBlock[], reach: CodeRange): CodeRange {
  const distances = blocks.flatMap(({ offset, operations, ending }) => {
    const last = operations[operations.length - 1];
    const end = last === undefined ? offset : offset + last.ripOffset + last.length - 1;
    return [offset, end, ...targetsOf(ending).filter((target) => isInRange(reach, target))];
  });
  return { least: Math.min(...distances), most: Math.max(...distances) };
}

function targetsOf(ending: RegionBlock["ending"]): number[] {
  switch (ending.kind) {
    case "jump":
    case "call":
      return [ending.target];
    case "branch":
      return [ending.taken, ending.next];
    default:
      return [];
  }
}

/** `base`: local with RIP of the start of the page. Elsewhere than in range the interpreter runs the block. */
export function returnUnlessInRange(c: Code, base: number, codeSize: CodeSize, { least, most }: CodeRange): void {
  const pushMost = (): Code => c.get(base).i64(BigInt(most)).op("i64.add");
  c.get(base).i64(BigInt(least)).op("i64.add").i64(0n).op("i64.lt_s");
  pushMost()
    .loadAt("i64.load32_u", segmentOffset(CS) + SEG_LIMIT)
    .op("i64.gt_s")
    .op("i32.or");
  if (codeSize === 16) pushMost().i64(BigInt(LARGEST_IP)).op("i64.gt_s").op("i32.or");
  c.ifUnlikely();
  c.get(0).return().end();
}
