/**
 * A VMCB as memory: fields by their offsets in vmcb-layout.ts. It keeps count of what software has changed since the last #VMEXIT, for
 * the clean bits.
 */
import { VMCB_ALL_CLEAN, VMCB_CLEAN_BITS, VmcbControl, VmcbSave } from "../arch/vmcb-layout.ts";
import { type SegmentState, SystemSegment } from "../guest/guest-cpu.ts";

const UNUSABLE = 0x1_0000;
const PRESENT = 0x80;
const BUSY = 2;
const SS = 2;
/** By segment number: ES, CS, SS, DS, FS, GS, LDTR, TR. */
const SEGMENTS: readonly number[] = [
  VmcbSave.ES,
  VmcbSave.CS,
  VmcbSave.SS,
  VmcbSave.DS,
  VmcbSave.FS,
  VmcbSave.GS,
  VmcbSave.LDTR,
  VmcbSave.TR,
];

/** By word of the VMCB: the clean bit that a change of it takes away, 0 for none. */
const CLEAN_BIT_OF = new Uint16Array(1024);
for (const [bit, first, end] of VMCB_CLEAN_BITS) CLEAN_BIT_OF.fill(1 << bit, first >>> 2, end >>> 2);

export class Vmcb {
  /** Clean bits that are true of the fields as they are. */
  #clean = 0;
  readonly #bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #quads: BigUint64Array;

  /** `page`: the 4 KiB at the VMCB's address. */
  constructor(page: Uint8Array) {
    this.#bytes = page;
    this.#words = new Uint32Array(page.buffer, page.byteOffset, 1024);
    this.#quads = new BigUint64Array(page.buffer, page.byteOffset, 512);
  }

  word(offset: number): number {
    return this.#words[offset >>> 2]!;
  }
  setWord(offset: number, value: number): void {
    const at = offset >>> 2;
    if (this.#words[at] === value >>> 0) return;
    this.#words[at] = value;
    this.#clean &= ~CLEAN_BIT_OF[at]!;
  }
  quad(offset: number): bigint {
    return this.#quads[offset >>> 3]!;
  }
  setQuad(offset: number, value: bigint): void {
    const at = offset >>> 3;
    if (this.#quads[at] === value) return;
    this.#quads[at] = value;
    this.#clean &= ~(CLEAN_BIT_OF[2 * at]! | CLEAN_BIT_OF[2 * at + 1]!);
  }

  /** Before VMRUN. `isElsewhere`: the processor has no copy of this VMCB, or none that it may use. */
  tellClean(isElsewhere: boolean): void {
    if (isElsewhere) this.#clean = 0;
    this.#words[VmcbControl.CLEAN >>> 2] = this.#clean;
  }
  /** After a #VMEXIT, which has left VMCB and processor with the same. */
  exited(): void {
    this.#clean = VMCB_ALL_CLEAN;
  }

  /** A 64-bit field below 2^53. */
  number(offset: number): number {
    return this.word(offset + 4) * 0x1_0000_0000 + this.word(offset);
  }
  setBit(offset: number, bit: number, on: boolean): void {
    const before = this.word(offset);
    this.setWord(offset, on ? before | bit : before & ~bit);
  }

  /** Attributes are the descriptor's without the gap of limit 19:16; a segment that is not present is not usable. */
  segment(register: number): SegmentState {
    const at = SEGMENTS[register]!;
    const head = this.word(at);
    const attributes = head >>> 16;
    let access = (attributes & 0xff) | ((attributes & 0xf00) << 4);
    if ((access & PRESENT) === 0) access |= UNUSABLE;
    if (register === SS) access = (access & ~0x60) | ((this.#bytes[VmcbSave.CPL]! & 3) << 5);
    if (register === SystemSegment.TR) access |= BUSY;
    return { selector: head & 0xffff, base: this.quad(at + 8), limit: this.word(at + 4), access };
  }
  setSegment(register: number, { selector, base, limit, access }: SegmentState): void {
    const at = SEGMENTS[register]!;
    const present = (access & UNUSABLE) !== 0 ? access & ~PRESENT : access;
    this.setWord(at, selector | (((present & 0xff) | ((present >>> 4) & 0xf00)) << 16));
    this.setWord(at + 4, limit);
    this.setQuad(at + 8, base);
    if (register !== SS) return;
    this.#bytes[VmcbSave.CPL] = (access >>> 5) & 3;
    this.#clean &= ~CLEAN_BIT_OF[VmcbSave.CPL >>> 2]!;
  }

  /** Fields that are not zero, for the log. */
  dump(): string {
    const parts: string[] = [];
    for (const [name, offset] of Object.entries(VmcbControl)) {
      const value = offset >= VmcbControl.IOPM_BASE_PA && offset % 8 === 0 ? this.quad(offset) : BigInt(this.word(offset));
      if (value !== 0n) parts.push(`${name}=0x${value.toString(16)}`);
    }
    for (const [name, offset] of Object.entries(VmcbSave)) {
      const value = offset === VmcbSave.CPL ? BigInt(this.#bytes[offset]!) : this.quad(offset);
      if (value !== 0n) parts.push(`${name}=0x${value.toString(16)}`);
    }
    return parts.join(" ");
  }
}
