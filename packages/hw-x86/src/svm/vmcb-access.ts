/** The VMCB of the running VMRUN, and bitmaps that it points to, as the processor reads and writes them. */
import type { MemoryBanks } from "../memory-banks.ts";
import type { MemoryBank } from "../physical-memory.ts";

const SPAN = 0x1_0000_0000;

export class Vmcb {
  u32: Uint32Array = new Uint32Array(0);
  u64: BigUint64Array = new BigUint64Array(0);
  u8: Uint8Array = new Uint8Array(0);
  /** Bank offset of its first byte. */
  base = 0;

  point(bank: MemoryBank, offset: number): void {
    this.u32 = bank.u32;
    this.u64 = bank.u64;
    this.u8 = bank.u8;
    this.base = offset;
  }

  /** Low 32 bits at an offset, unsigned. */
  low(offset: number): number {
    return this.u32[(this.base + offset) >>> 2] as number;
  }
  high(offset: number): number {
    return this.u32[((this.base + offset) >>> 2) + 1] as number;
  }
  /** 64 bits as a number, exact below 2^53. */
  number(offset: number): number {
    return this.high(offset) * SPAN + this.low(offset);
  }
  big(offset: number): bigint {
    return this.u64[(this.base + offset) >>> 3] as bigint;
  }
  byte(offset: number): number {
    return this.u8[this.base + offset] as number;
  }

  setLow(offset: number, value: number): void {
    this.u32[(this.base + offset) >>> 2] = value;
  }
  setPair(offset: number, low: number, high: number): void {
    const at = (this.base + offset) >>> 2;
    this.u32[at] = low;
    this.u32[at + 1] = high;
  }
  setByte(offset: number, value: number): void {
    this.u8[this.base + offset] = value;
  }
}

/** A permission map in physical memory; reads as all ones where there is no memory. */
export class PermissionMap {
  #u8: Uint8Array | undefined;
  #offset = 0;

  point(address: number, bytes: number, memory: MemoryBanks): void {
    this.#u8 = memory.holding(address, bytes)?.u8;
    this.#offset = address % SPAN;
  }

  test(bit: number): boolean {
    return this.#u8 === undefined || (((this.#u8[this.#offset + (bit >>> 3)] as number) >>> (bit & 7)) & 1) !== 0;
  }
}
