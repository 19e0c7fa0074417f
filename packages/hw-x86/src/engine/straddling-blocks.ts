/**
 * Blocks of one instruction that lies across two pages. They hold only where the second page is the one they were decoded from, which no
 * table of blocks tells, so that they are compared whenever they are looked up.
 */
import { PAGE_BYTES } from "./code-pages.ts";
import type { Cpu } from "./cpu.ts";
import { block } from "./operation.ts";
import { translateFetchHalves } from "./system/paging.ts";

/** Bank offset of the page behind that of a linear address (halves). Raises what fetching there raises. */
export function pageAfter(cpu: Cpu, lo: number, hi: number): number {
  const next = ((lo & ~(PAGE_BYTES - 1)) + PAGE_BYTES) | 0;
  return translateFetchHalves(cpu, next, next === 0 ? (hi + 1) | 0 : hi);
}

export class StraddlingBlocks {
  readonly #cpu: Cpu;
  /** Bank offset of the second page, and the bytes, by header. */
  readonly #blocks = new Map<number, { second: number; bytes: Uint8Array }>();

  constructor(cpu: Cpu) {
    this.#cpu = cpu;
  }

  has(header: number): boolean {
    return this.#blocks.has(header);
  }

  /** Bank offset of the second page of that block; undefined where it has none. */
  secondPage(header: number): number | undefined {
    return this.#blocks.get(header)?.second;
  }

  /** The block at that header was decoded from the end of the page of `physical`, and `inSecond` bytes of the page at `second`. */
  add(header: number, physical: number, second: number, inSecond: number): void {
    const { u8 } = this.#cpu;
    const inFirst = PAGE_BYTES - (physical & (PAGE_BYTES - 1));
    const bytes = new Uint8Array(inFirst + inSecond);
    bytes.set(u8.subarray(physical, physical + inFirst));
    bytes.set(u8.subarray(second, second + inSecond), inFirst);
    this.#blocks.set(header, { second, bytes });
  }

  /** False when the block there, looked up at a linear address (halves), is not what is in memory. */
  isValid(header: number, lo: number, hi: number): boolean {
    const { u8, u32 } = this.#cpu;
    const straddling = this.#blocks.get(header);
    if (straddling === undefined) return true;
    const second = pageAfter(this.#cpu, lo, hi);
    if (second !== straddling.second) return false;
    const first = u32[(header + block.physical) >>> 2];
    const inFirst = PAGE_BYTES - (first & (PAGE_BYTES - 1));
    return straddling.bytes.every((byte, i) => byte === u8[i < inFirst ? first + i : second + i - inFirst]);
  }

  delete(header: number): void {
    this.#blocks.delete(header);
  }
  clear(): void {
    this.#blocks.clear();
  }
}
