/**
 * A page with the registers of a local APIC, 16 bytes apart, as both vendors' virtualization keeps it in memory: Intel's virtual-APIC page,
 * AMD's backing page. Source: Intel SDM Vol. 3A, Local APIC; AMD64 APM Vol. 2, Advanced Virtual Interrupt Controller.
 */
import type { MemoryBank } from "./physical-memory.ts";
import type { RootCpu } from "./root-interface.ts";

/** Offsets in the page. */
export const Apic = {
  id: 0x20,
  tpr: 0x80,
  ppr: 0xa0,
  eoi: 0xb0,
  dfr: 0xe0,
  isr: 0x100,
  tmr: 0x180,
  irr: 0x200,
  icrLow: 0x300,
  icrHigh: 0x310,
  selfIpi: 0x3f0,
} as const;
/** Bits of a vector that are its priority class. */
export const VECTOR_CLASS = 0xf0;

const NO_WORDS = new Uint32Array(0x400);

export class ApicPage {
  /** Words of the bank that holds the page, and where it begins. */
  #words: Uint32Array = NO_WORDS;
  #base = 0;

  /** Turns to the page at a bank offset; to none, where registers read as zero and keep nothing. */
  point(bank: MemoryBank | undefined, offset: number): void {
    this.#words = bank?.u32 ?? NO_WORDS;
    this.#base = bank === undefined ? 0 : offset >>> 2;
    if (bank === undefined) NO_WORDS.fill(0);
  }

  get(offset: number): number {
    return this.#words[this.#base + (offset >>> 2)] as number;
  }
  set(offset: number, value: number): void {
    this.#words[this.#base + (offset >>> 2)] = value;
  }

  /** Bit of a vector in ISR, TMR or IRR, which other processors may write meanwhile. */
  mark(block: number, vector: number): void {
    Atomics.or(this.#words, this.#base + ((block + (vector >>> 5) * 16) >>> 2), 1 << (vector & 31));
  }
  unmark(block: number, vector: number): void {
    Atomics.and(this.#words, this.#base + ((block + (vector >>> 5) * 16) >>> 2), ~(1 << (vector & 31)));
  }
  has(block: number, vector: number): boolean {
    return ((this.get(block + (vector >>> 5) * 16) >>> (vector & 31)) & 1) !== 0;
  }
  /** Highest vector of a block, 0 when there is none. */
  highest(block: number): number {
    for (let i = 7; i >= 0; i--) {
      const word = this.get(block + i * 16);
      if (word !== 0) return i * 32 + 31 - Math.clz32(word);
    }
    return 0;
  }
}

/**
 * Under icount an access that is virtualized does not move the TSC, as it would not if it exited for software to emulate: so a run is the
 * same whether its hypervisor uses the virtualization or not.
 */
export class HeldTime {
  readonly #cpu: RootCpu;
  /** Retired instructions before the last one that was kept from moving the TSC. */
  #at = -1;

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  hold(): void {
    if (this.#cpu.clock.isWall) return;
    const retired = this.#cpu.retiredInstructions();
    if (retired === this.#at) return;
    this.#at = retired;
    this.#cpu.clock.holdBack();
  }
}
