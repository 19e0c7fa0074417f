/**
 * Frames that far transfers and event delivery push and pop. A frame is written below the stack pointer as a whole, after all
 * checks of its range, and the stack pointer is the caller's to change: so a transfer that faults has changed nothing.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { gprOffset, RSP, SS, state } from "../cpu-state.ts";
import { Access, Vector } from "./bits.ts";
import { accessOf, baseOf, type Descriptor, limitOf, rightsOf, segmentBase, segmentLimit } from "./descriptors.ts";
import { isCanonicalHigh } from "./linear-address.ts";
import { readAt } from "./memory-access.ts";
import { isApicPage, READ, translate, WRITE } from "./paging.ts";
import { is64Bit } from "./processor-mode.ts";
import { linear } from "./segmentation.ts";
import { checksAlignment } from "./translation-caches.ts";

const RSP_LOW = gprOffset(RSP) >>> 2;

/** Where frames go: a stack segment outside 64-bit mode. */
export interface LegacyStack {
  base: number;
  limit: number;
  access: number;
  /** Selector for #SS, with the EXT bit; 0 for the current stack. */
  error: number;
}

export const currentStack = (cpu: Cpu): LegacyStack => ({
  base: segmentBase(cpu, SS),
  limit: segmentLimit(cpu, SS),
  access: accessOf(cpu, SS),
  error: 0,
});

export const stackOf = (descriptor: Descriptor, error: number): LegacyStack => ({
  base: baseOf(descriptor),
  limit: limitOf(descriptor),
  access: rightsOf(descriptor),
  error,
});

const maskOf = (stack: LegacyStack): number => ((stack.access & Access.big) !== 0 ? 0xffff_ffff : 0xffff);

function checkStack(cpu: Cpu, stack: LegacyStack, offset: number, bytes: number): void {
  const last = offset + bytes - 1;
  const isExpandDown = (stack.access & (Access.code | Access.expandDown)) === Access.expandDown;
  const isInside = isExpandDown ? offset > stack.limit && last <= maskOf(stack) : last <= stack.limit;
  if (!isInside) cpu.raise(Vector.SS, stack.error);
}

/** #SS unless `count` values of `bytes` each fit below the pointer: before a transfer's target is looked at, as page faults are after. */
export function checkRoom(cpu: Cpu, stack: LegacyStack, pointer: number, bytes: 2 | 4, count: number): void {
  const mask = maskOf(stack);
  for (let i = 1; i <= count; i++) checkStack(cpu, stack, ((pointer - i * bytes) & mask) >>> 0, bytes);
}

/** Pushes values of `bytes` each, first one first; returns the new stack pointer (low 32 or 16 bits of it in use). */
export function pushLegacy(
  cpu: Cpu,
  stack: LegacyStack,
  pointer: number,
  bytes: 2 | 4,
  values: readonly number[],
  supervisor: boolean,
): number {
  const mask = maskOf(stack);
  let at = pointer;
  for (let i = 0; i < values.length; i++) {
    at = (at - bytes) >>> 0;
    const offset = (at & mask) >>> 0;
    checkStack(cpu, stack, offset, bytes);
    cpu.probeWrite(BigInt((stack.base + offset) >>> 0) as Gva, bytes, supervisor);
  }
  at = pointer;
  for (const value of values) {
    at = (at - bytes) >>> 0;
    const offset = (at & mask) >>> 0;
    cpu.writeLinear(BigInt((stack.base + offset) >>> 0) as Gva, bytes, BigInt(value >>> 0), supervisor);
  }
  return mask === 0xffff ? ((pointer & 0xffff_0000) | (at & 0xffff)) >>> 0 : at;
}

const TWO_32 = 0x1_0000_0000;
const lowOf = (value: bigint): number => Number(BigInt.asUintN(32, value));
const highOf = (value: bigint): number => Number(BigInt.asUintN(32, value >> 32n));
const joined = (low: number, high: number): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

/** 64-bit values to push, first one first, in halves; and where they go. One is made for many frames. */
export class LongFrame {
  readonly #halves = new Uint32Array(2 * 6);
  #count = 0;
  /** Where the stack pointer is when all is pushed: halves, unsigned. Set by `place`. */
  low = 0;
  high = 0;

  begin(): void {
    this.#count = 0;
  }
  add(low: number, high: number): void {
    this.#halves[2 * this.#count] = low;
    this.#halves[2 * this.#count++ + 1] = high;
  }
  /** Below that stack pointer (halves, unsigned). #SS(error) for an address that is not canonical. */
  place(cpu: Cpu, low: number, high: number, error: number): void {
    const bytes = this.#count * 8;
    const borrow = low < bytes ? 1 : 0;
    this.low = (low - bytes) >>> 0;
    this.high = (high - borrow) >>> 0;
    const lastHigh = low === 0 ? high - 1 : high;
    if (!isCanonicalHigh(cpu, this.high) || !isCanonicalHigh(cpu, lastHigh)) cpu.raise(Vector.SS, error);
  }
  /** Makes the pointer below what was pushed the stack pointer. */
  takeStack(cpu: Cpu): void {
    cpu.u32[RSP_LOW] = this.low;
    cpu.u32[RSP_LOW + 1] = this.high;
  }
  /** Writes what was placed. */
  push(cpu: Cpu, supervisor: boolean): void {
    const count = this.#count;
    const bytes = count * 8;
    const low = this.low | 0;
    if ((low & 0xfff) + bytes <= 4096 && (low & 7) === 0 && !cpu.breakpoints.hasData) {
      const at = translate(cpu, low, this.high | 0, WRITE, !supervisor);
      if (isApicPage) cpu.guest.apic.checkWrite(low & 0xfff, bytes);
      for (let i = 0; i < count; i++) {
        const word = (at >>> 2) + 2 * (count - 1 - i);
        cpu.u32[word] = this.#halves[2 * i];
        cpu.u32[word + 1] = this.#halves[2 * i + 1];
      }
      if (cpu.holdsCode((at & ~0xfff) >>> 0)) cpu.codeWritten(at, bytes);
      return;
    }
    const bottom = joined(this.low, this.high);
    cpu.probeWrite(bottom as Gva, bytes, supervisor);
    for (let i = 0; i < count; i++) {
      const value = joined(this.#halves[2 * i], this.#halves[2 * i + 1]);
      cpu.writeLinear((bottom + BigInt((count - 1 - i) * 8)) as Gva, 8, value, supervisor);
    }
  }
}

/** A frame of those values below a stack pointer: checked, and not written yet. */
export function placeLong(cpu: Cpu, pointer: bigint, values: readonly bigint[], error: number): LongFrame {
  const frame = new LongFrame();
  for (const value of values) frame.add(lowOf(value), highOf(value));
  frame.place(cpu, lowOf(pointer), highOf(pointer), error);
  return frame;
}

/**
 * Bank offset of `bytes` on top of the stack of 64-bit code where they can be read at once: they lie in one page, and nobody is to see
 * each access for itself. Else -1: `peekAt` is to read them one by one.
 */
export function topOfStack(cpu: Cpu, bytes: number): number {
  const low = cpu.u32[RSP_LOW];
  const high = cpu.u32[RSP_LOW + 1];
  if ((low & 0xfff) + bytes > 4096 || cpu.breakpoints.hasData || checksAlignment(cpu)) return -1;
  if (!isCanonicalHigh(cpu, high)) cpu.raise(Vector.SS, 0);
  const at = translate(cpu, low | 0, high | 0, READ, cpu.u32[state.cpl >>> 2] === 3);
  return isApicPage ? -1 : at;
}

/** Bank offset from which `bytes` can be read, `skip` bytes behind the stack pointer of 64-bit code. */
export function peekAt(cpu: Cpu, skip: number, bytes: number): number {
  const low = cpu.u32[RSP_LOW] + skip;
  const high = cpu.u32[RSP_LOW + 1] + (low >= TWO_32 ? 1 : 0);
  const lastHigh = low < TWO_32 && low + bytes - 1 >= TWO_32 ? high + 1 : high;
  if (!isCanonicalHigh(cpu, high) || !isCanonicalHigh(cpu, lastHigh)) cpu.raise(Vector.SS, 0);
  return readAt(cpu, low | 0, high | 0, bytes, undefined);
}

/** Value `index` (0: top) of `bytes` each on the current stack, without moving it. */
export function peek(cpu: Cpu, index: number, bytes: 2 | 4 | 8, skip = 0): bigint {
  const offset = (cpu.reg(RSP) + BigInt(index * bytes + skip)) & cpu.get64(state.stackMask);
  return cpu.readLinear(linear(cpu, SS, offset, bytes, false), bytes);
}

/** Stack pointer moved by `bytes`, in the width of the stack. */
export function movedStackPointer(cpu: Cpu, bytes: number): bigint {
  const mask = cpu.get64(state.stackMask);
  const rsp = cpu.reg(RSP);
  return BigInt.asUintN(64, (rsp & ~mask) | ((rsp + BigInt(bytes)) & mask));
}

/** Pushes on the current stack in whatever mode; returns the stack pointer to load once nothing can fault any more. */
export function pushed(cpu: Cpu, bytes: 2 | 4 | 8, values: readonly bigint[]): bigint {
  let offset = 0;
  const mask = cpu.get64(state.stackMask);
  const rsp = cpu.reg(RSP);
  const addresses: Gva[] = [];
  for (let i = 0; i < values.length; i++) {
    offset += bytes;
    const address = linear(cpu, SS, (rsp - BigInt(offset)) & mask, bytes, true);
    cpu.probeWrite(address, bytes);
    addresses.push(address);
  }
  for (let i = 0; i < values.length; i++) cpu.writeLinear(addresses[i], bytes, BigInt.asUintN(bytes * 8, values[i]));
  return is64Bit(cpu) ? BigInt.asUintN(64, rsp - BigInt(offset)) : movedStackPointer(cpu, -offset);
}
