/**
 * The current VMCS, in its region of physical memory. What of its guest state a CPU still holds (see instructions.ts) VMCLEAR
 * puts there first, so that a region read after VMCLEAR is whole. Fields are 32-bit halves; a `slot` names the low one.
 */
import type { Hpa } from "../addresses.ts";
import type { MemoryBank } from "../physical-memory.ts";

/** Bits 30:0 of IA32_VMX_BASIC and of the first word of every VMXON and VMCS region. */
export const VMCS_REVISION = 0x0000_4d4b;

export const VMCS_REVISION_WORD = 0;
export const VMCS_ABORT_WORD = 1;
/** 0 clear, 1 launched. */
const LAUNCH_WORD = 2;
/** CHECKED_* bits: what the last successful VM entry found valid and no VMWRITE has touched since. */
const CHECKED_WORD = 3;
/** Number of the logical CPU on which the VMCS is active, plus 1; 0: none. */
const ACTIVE_WORD = 4;
/** DIRTY_GUEST: guest state that VMWRITE changed since the last VM exit. */
const DIRTY_WORD = 5;
/** 1: exit-information fields beside reason, qualification and instruction length are not zero. */
const DETAIL_WORD = 6;

export const CHECKED_CONTROLS = 1;
export const CHECKED_HOST = 2;
export const CHECKED_GUEST = 4;
export const DIRTY_GUEST = 1;

const NO_WORDS = new Uint32Array(0);
const NO_QUADS = new BigUint64Array(0);

export class Vmcs {
  /** -1: there is no current VMCS. */
  address = -1;
  bank = -1;
  u32: Uint32Array = NO_WORDS;
  u64: BigUint64Array = NO_QUADS;
  /** Index in `u32` of the region's first word. */
  base = 0;

  get isValid(): boolean {
    return this.address >= 0;
  }

  point(address: Hpa, bank: MemoryBank, offset: number): void {
    this.address = address;
    this.bank = bank.id;
    this.u32 = bank.u32;
    this.u64 = bank.u64;
    this.base = offset >>> 2;
  }

  invalidate(): void {
    this.address = -1;
    this.bank = -1;
    this.u32 = NO_WORDS;
    this.u64 = NO_QUADS;
    this.base = 0;
  }

  /** Low 32 bits. */
  low(slot: number): number {
    return this.u32[this.base + slot] as number;
  }
  high(slot: number): number {
    return this.u32[this.base + slot + 1] as number;
  }
  /** For addresses and other values below 2^53. */
  number(slot: number): number {
    return this.high(slot) * 0x1_0000_0000 + this.low(slot);
  }
  big(slot: number): bigint {
    return this.u64[(this.base + slot) >>> 1] as bigint;
  }
  /** A value below 2^32; the high half becomes 0. */
  set(slot: number, low: number): void {
    this.u32[this.base + slot] = low;
    this.u32[this.base + slot + 1] = 0;
  }
  setPair(slot: number, low: number, high: number): void {
    this.u32[this.base + slot] = low;
    this.u32[this.base + slot + 1] = high;
  }

  get isLaunched(): boolean {
    return this.u32[this.base + LAUNCH_WORD] === 1;
  }
  markLaunched(): void {
    this.u32[this.base + LAUNCH_WORD] = 1;
  }
  get checked(): number {
    return this.u32[this.base + CHECKED_WORD] as number;
  }
  set checked(bits: number) {
    this.u32[this.base + CHECKED_WORD] = bits;
  }
  get hasExitDetail(): boolean {
    return this.u32[this.base + DETAIL_WORD] !== 0;
  }
  set hasExitDetail(has: boolean) {
    this.u32[this.base + DETAIL_WORD] = has ? 1 : 0;
  }
  get dirty(): number {
    return this.u32[this.base + DIRTY_WORD] as number;
  }
  set dirty(bits: number) {
    this.u32[this.base + DIRTY_WORD] = bits;
  }
}

/** VMCLEAR's effect on the region at `offset` of `bank`. */
export function clearRegion(bank: MemoryBank, offset: number): void {
  const base = offset >>> 2;
  bank.u32[base + LAUNCH_WORD] = 0;
  bank.u32[base + CHECKED_WORD] = 0;
  bank.u32[base + ACTIVE_WORD] = 0;
  bank.u32[base + DIRTY_WORD] = DIRTY_GUEST;
  bank.u32[base + DETAIL_WORD] = 1;
}

/** Marks the region active on `cpu`; returns the CPU on which it is active already, or -1. */
export function activateRegion(bank: MemoryBank, offset: number, cpu: number): number {
  const index = (offset >>> 2) + ACTIVE_WORD;
  const before = (bank.u32[index] as number) - 1;
  bank.u32[index] = cpu + 1;
  return before === cpu ? -1 : before;
}
