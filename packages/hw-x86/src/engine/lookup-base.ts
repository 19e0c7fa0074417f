/**
 * How blocks are looked up: `state.lookupBase` is added to RIP. Blocks for flat segments outside 64-bit mode differ from those
 * for other segments, so bit 40 is set for the former. Call after any change to segments or code size.
 */
import type { Cpu } from "./cpu.ts";
import { CS, DS, ES, SEG_EFFECTIVE_BASE, SEG_READ_END, SEG_WRITE_END, SS, segmentOffset, state } from "./cpu-state.ts";

const FLAT_BIT = 0x100;
const ALL_ONES = 0xffff_ffff;

/** True when the blocks that run now may use the handlers for flat segments. */
export function isFlat(cpu: Cpu): boolean {
  return cpu.u32[state.codeSize >>> 2] === 64 || cpu.u32[(state.lookupBase >>> 2) + 1] >= FLAT_BIT;
}

function isFlatSegment(cpu: Cpu, segment: number, needsWrite: boolean): boolean {
  const slot = segmentOffset(segment);
  const { u32 } = cpu;
  return (
    u32[(slot + SEG_EFFECTIVE_BASE) >>> 2] === 0 &&
    u32[(slot + SEG_EFFECTIVE_BASE + 4) >>> 2] === 0 &&
    // 2^32
    u32[(slot + SEG_READ_END + 4) >>> 2] === 1 &&
    (!needsWrite || u32[(slot + SEG_WRITE_END + 4) >>> 2] === 1)
  );
}

export function updateLookupBase(cpu: Cpu): void {
  const { u32 } = cpu;
  const at = state.lookupBase >>> 2;
  if (u32[state.codeSize >>> 2] === 64) {
    u32[at] = u32[at + 1] = 0;
    u32[state.flatMask >>> 2] = u32[(state.flatMask >>> 2) + 1] = ALL_ONES;
    return;
  }
  const flat =
    u32[state.codeSize >>> 2] === 32 &&
    isFlatSegment(cpu, DS, true) &&
    isFlatSegment(cpu, SS, true) &&
    isFlatSegment(cpu, ES, true) &&
    isFlatSegment(cpu, CS, false);
  const base = segmentOffset(CS) + SEG_EFFECTIVE_BASE;
  u32[at] = u32[base >>> 2];
  u32[at + 1] = u32[(base >>> 2) + 1] | (flat ? FLAT_BIT : 0);
  u32[state.flatMask >>> 2] = ALL_ONES;
  u32[(state.flatMask >>> 2) + 1] = 0;
}
