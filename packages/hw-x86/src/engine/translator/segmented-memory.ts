/**
 * Linear addresses in segments with a base and a limit: all of 16-bit code, 32-bit code whose segments are not flat, and FS and GS
 * of any 32-bit code. Base and limit are read where they are used: what loads a segment register ends the region.
 */
import { CS, DS, ES, SEG_EFFECTIVE_BASE, SEG_READ_END, SEG_WRITE_END, segmentOffset } from "../cpu-state.ts";
import type { Scope } from "../interpreter/schedule.ts";
import type { Code } from "../wasm/code.ts";

export interface SegmentAccess {
  /** Bank offset of the segment's slot. */
  readonly slot: number;
  readonly bytes: number;
  readonly isWrite: boolean;
}

/** Segments that make a mode flat (lookup-base.ts) need no check; but nobody writes through CS. */
export function isFlatCandidate(slot: number, isWrite: boolean): boolean {
  return slot >= segmentOffset(ES) && slot <= segmentOffset(DS) && !(isWrite && slot === segmentOffset(CS));
}

/**
 * Offset on the stack, not above 32 bits -> linear address on the stack. `leave` leaves the region for what passes the limit; the
 * interpreter then decides, as for expand-down segments, whose ends are 0 (cpu-state.ts). Linear addresses wrap at 4 GiB: what lies
 * above misses the TLB, and the slow path wraps it. So do those of unusable segments, which it refuses.
 */
export function emitSegmentedLinear(c: Code, scope: Scope, { slot, bytes, isWrite }: SegmentAccess, leave: () => void): void {
  const offset = scope.temporary("i64");
  c.tee(offset);
  if (bytes > 1) c.i64(BigInt(bytes - 1)).op("i64.add");
  c.loadAt("i64.load", slot + (isWrite ? SEG_WRITE_END : SEG_READ_END))
    .op("i64.ge_u")
    .ifUnlikely();
  leave();
  c.end();
  c.get(offset)
    .loadAt("i64.load", slot + SEG_EFFECTIVE_BASE)
    .op("i64.add");
  scope.release("i64", offset);
}
