/**
 * Runs of REP MOVS and REP STOS: as many elements at once as fit in the pages (both, for moves) that the pointers are in. How
 * many that is follows from guest state alone, never from what a TLB holds, since each run counts as one instruction retired.
 * A helper returns 0, and has done nothing, where single elements must go the ordinary way: DF or TF set, data breakpoints armed, an element across a
 * page or a wrap of its address, a segment whose limit is near.
 */
import type { Cpu } from "../cpu.ts";
import {
  ES,
  gprOffset,
  RAX,
  RCX,
  RDI,
  RSI,
  SEG_EFFECTIVE_BASE,
  SEG_READ_END,
  SEG_WRITE_END,
  segmentOffset,
  state,
} from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { op } from "../operation.ts";
import { isCanonicalHigh } from "../system/linear-address.ts";
import { isApicPage, READ, translate, WRITE } from "../system/paging.ts";
import { checksAlignment } from "../system/translation-caches.ts";

const TF = 0x100;
const DF = 0x400;
const PAGE = 4096;
const TWO32 = 0x1_0000_0000;

// Where a pointer leads, as halves of its linear address. Set by `locate`.
let linearLow = 0;
let linearHigh = 0;

/** Elements of `bytes` from the pointer on that lie in its page and pass the segment's limit for sure; 0 to 4096. */
function locate(cpu: Cpu, slot: number, end: number, register: number, bytes: number): number {
  const { u32 } = cpu;
  const addressSize = cpu.u8[cpu.operation + op.addressSize];
  let low = u32[gprOffset(register) >>> 2];
  const high = addressSize === 64 ? u32[(gprOffset(register) + 4) >>> 2] : 0;
  if (addressSize === 16) low &= 0xffff;
  const baseLow = u32[(slot + SEG_EFFECTIVE_BASE) >>> 2];
  const baseHigh = u32[(slot + SEG_EFFECTIVE_BASE + 4) >>> 2];
  const sum = low + baseLow;
  linearLow = sum | 0;
  const inPage = PAGE - (linearLow & (PAGE - 1));
  let room = inPage;
  if (cpu.u32[state.codeSize >>> 2] === 64) {
    linearHigh = (high + baseHigh + (sum >= TWO32 ? 1 : 0)) | 0;
    if (!isCanonicalHigh(cpu, linearHigh)) return 0;
  } else {
    linearHigh = 0;
    if (baseHigh !== 0) return 0;
  }
  if (addressSize !== 64) room = Math.min(room, (addressSize === 16 ? 0x1_0000 : TWO32) - low);
  const endHigh = u32[(slot + end + 4) >>> 2];
  if (endHigh <= 1) room = Math.min(room, endHigh * TWO32 + u32[(slot + end) >>> 2] - low);
  return room < bytes ? 0 : Math.floor(room / bytes);
}

/** rCX as the address size has it, at most 2^32. */
function countOf(cpu: Cpu): number {
  const low = cpu.u32[gprOffset(RCX) >>> 2];
  switch (cpu.u8[cpu.operation + op.addressSize]) {
    case 16:
      return low & 0xffff;
    case 32:
      return low;
    default:
      return cpu.u32[(gprOffset(RCX) + 4) >>> 2] !== 0 ? TWO32 : low;
  }
}

/** Adds to a pointer or the counter by address size; no 16- or 32-bit wrap can happen in a run. */
function move(cpu: Cpu, register: number, by: number): void {
  const at = gprOffset(register);
  switch (cpu.u8[cpu.operation + op.addressSize]) {
    case 16:
      cpu.u16[at >>> 1] += by;
      break;
    case 32:
      cpu.u32[at >>> 2] += by;
      cpu.u32[(at + 4) >>> 2] = 0;
      break;
    default: {
      const sum = cpu.u32[at >>> 2] + by;
      cpu.u32[at >>> 2] = sum;
      if (sum < 0) cpu.u32[(at + 4) >>> 2]--;
      else if (sum >= TWO32) cpu.u32[(at + 4) >>> 2]++;
    }
  }
}

function isStepwise(cpu: Cpu): boolean {
  const flags = (cpu.u32[state.systemFlags >>> 2] & (DF | TF)) | cpu.u32[state.iteratesSingly >>> 2];
  return flags !== 0 || cpu.breakpoints.hasData || checksAlignment(cpu);
}

function written(cpu: Cpu, offset: number, bytes: number): void {
  if (cpu.holdsCode((offset & ~(PAGE - 1)) >>> 0)) cpu.codeWritten(offset, bytes);
}

/** REP MOVS of elements of `bytes`: 1 when it moved a run and stepped rSI, rDI and rCX. */
function moveRun(cpu: Cpu, bytes: number): number {
  if (isStepwise(cpu)) return 0;
  const source = cpu.u16[(cpu.operation + op.segment) >>> 1];
  let count = Math.min(countOf(cpu), locate(cpu, source, SEG_READ_END, RSI, bytes));
  if (count === 0) return 0;
  const fromLow = linearLow;
  const fromHigh = linearHigh;
  count = Math.min(count, locate(cpu, segmentOffset(ES), SEG_WRITE_END, RDI, bytes));
  if (count === 0) return 0;
  const isUser = cpu.u32[state.cpl >>> 2] === 3;
  const toLow = linearLow;
  const toHigh = linearHigh;
  const from = translate(cpu, fromLow, fromHigh, READ, isUser);
  if (isApicPage) return 0;
  const to = translate(cpu, toLow, toHigh, WRITE, isUser);
  if (isApicPage) return 0;
  const length = count * bytes;
  const distance = to - from;
  const { u8 } = cpu;
  if (distance > 0 && distance < length) {
    // Elements are to be read back after they were written, which spreads a pattern
    if (distance < bytes) return 0;
    for (let i = 0; i < length; i++) u8[to + i] = u8[from + i];
  } else u8.copyWithin(to, from, from + length);
  written(cpu, to, length);
  move(cpu, RSI, length);
  move(cpu, RDI, length);
  move(cpu, RCX, -count);
  return 1;
}

function isRepeatedByte(u8: Uint8Array, at: number, bytes: number): boolean {
  for (let i = 1; i < bytes; i++) if (u8[at + i] !== u8[at]) return false;
  return true;
}

const EACH_BYTE = 0x0101_0101_0101_0101n;
/** Most runs clear a page. Shared memory is filled an element at a time, so they are to be large. */
function fillBytes(cpu: Cpu, byte: number, from: number, to: number): void {
  const start = Math.min(from + (-from & 7), to);
  const words = (to - start) >>> 3;
  cpu.u8.fill(byte, from, start);
  cpu.u64.fill(BigInt(byte) * EACH_BYTE, start >>> 3, (start >>> 3) + words);
  cpu.u8.fill(byte, start + 8 * words, to);
}

/** REP STOS of elements of `bytes`: 1 when it stored a run and stepped rDI and rCX. */
function storeRun(cpu: Cpu, bytes: number): number {
  if (isStepwise(cpu)) return 0;
  const count = Math.min(countOf(cpu), locate(cpu, segmentOffset(ES), SEG_WRITE_END, RDI, bytes));
  if (count === 0) return 0;
  const to = translate(cpu, linearLow, linearHigh, WRITE, cpu.u32[state.cpl >>> 2] === 3);
  if (isApicPage) return 0;
  const length = count * bytes;
  const { u8 } = cpu;
  const value = gprOffset(RAX);
  if (bytes === 8 && (to & 7) === 0) cpu.u64.fill(cpu.u64[value >>> 3], to >>> 3, (to >>> 3) + count);
  else if (isRepeatedByte(u8, value, bytes)) fillBytes(cpu, u8[value], to, to + length);
  else {
    u8.copyWithin(to, value, value + bytes);
    for (let done = bytes; done < length; done *= 2) u8.copyWithin(to + done, to, to + Math.min(done, length - done));
  }
  written(cpu, to, length);
  move(cpu, RDI, length);
  move(cpu, RCX, -count);
  return 1;
}

export const stringHelpers: HelperTable = { moveRun, storeRun };
