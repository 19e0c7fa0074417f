/**
 * Frames that far transfers and event delivery push and pop. A frame is written below the stack pointer as a whole, after all
 * checks of its range, and the stack pointer is the caller's to change: so a transfer that faults has changed nothing.
 */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { RSP, SS, state } from "../cpu-state.ts";
import { Access, Vector } from "./bits.ts";
import { accessOf, baseOf, type Descriptor, limitOf, rightsOf, segmentBase, segmentLimit } from "./descriptors.ts";
import { isCanonical } from "./linear-address.ts";
import { isApicPage, translate, WRITE } from "./paging.ts";
import { is64Bit } from "./processor-mode.ts";
import { linear } from "./segmentation.ts";

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

/** #SS(error) where values of `bytes` in all do not go below the pointer, an address not being canonical. */
export function checkLongRoom(cpu: Cpu, pointer: bigint, bytes: number, error: number): void {
  const bottom = BigInt.asUintN(64, pointer - BigInt(bytes));
  if (!isCanonical(cpu, bottom) || !isCanonical(cpu, pointer - 1n)) cpu.raise(Vector.SS, error);
}

/** Pushes 64-bit values, first one first; returns the new stack pointer. #SS(error) for an address that is not canonical. */
export function pushLong(cpu: Cpu, pointer: bigint, values: readonly bigint[], supervisor: boolean, error: number): bigint {
  const bytes = values.length * 8;
  const bottom = BigInt.asUintN(64, pointer - BigInt(bytes));
  checkLongRoom(cpu, pointer, bytes, error);
  const low = Number(BigInt.asIntN(32, bottom));
  if ((low & 0xfff) + bytes <= 4096 && (low & 7) === 0 && !cpu.breakpoints.hasData) {
    const at = translate(cpu, low, Number(BigInt.asIntN(32, bottom >> 32n)), WRITE, !supervisor);
    if (isApicPage) cpu.guest.apic.checkWrite(low & 0xfff, bytes);
    for (let i = 0; i < values.length; i++) cpu.u64[(at >>> 3) + values.length - 1 - i] = values[i];
    if (cpu.holdsCode((at & ~0xfff) >>> 0)) cpu.codeWritten(at, bytes);
    return bottom;
  }
  cpu.probeWrite(bottom as Gva, bytes, supervisor);
  for (let i = 0; i < values.length; i++) {
    cpu.writeLinear((bottom + BigInt((values.length - 1 - i) * 8)) as Gva, 8, values[i], supervisor);
  }
  return bottom;
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
