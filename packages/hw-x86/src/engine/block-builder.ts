/** Decodes a block: writes its header and the records of its operations, as generated code reads them. */

import { PAGE_BYTES } from "./code-pages.ts";
import type { Cpu } from "./cpu.ts";
import { CS, DS, SEG_LIMIT, segmentOffset, state } from "./cpu-state.ts";
import type { Decode, DecodedOperation, Variant } from "./decoder/variant.ts";
import { Synthetic } from "./interpreter/synthetic.ts";
import { isFlat } from "./lookup-base.ts";
import { block, OP_BYTES, op, USES_STACK } from "./operation.ts";
import { pageAfter } from "./straddling-blocks.ts";
import { Vector } from "./system/bits.ts";

/** The part of the generated interpreter that decoding needs; see interpreter-module.ts. */
export interface HandlerNumbers {
  readonly general: Uint16Array;
  readonly flat: Uint16Array;
  readonly flatNoIndex: Uint16Array;
  readonly endsBlock: Uint8Array;
}

export const LONGEST_BLOCK = 64;
/** Records of a block beside those of its instructions: its header and its end. */
export const FRAME_RECORDS = 2;
export const LONGEST_RECORDS = LONGEST_BLOCK + FRAME_RECORDS;
const LONGEST_INSTRUCTION = 15;

/** Instructions that push or pop, whatever their memory operand. */
const STACK_INSTRUCTION = /^(PUSH|POP(?!CNT)|CALL|RET|ENTER|LEAVE)/;

const RIP = state.rip >>> 2;
const CODE_SIZE = state.codeSize >>> 2;

export class BlockBuilder {
  readonly #cpu: Cpu;
  readonly #decode: Decode;
  readonly #into: DecodedOperation;
  readonly #handlers: HandlerNumbers;
  readonly #isRelative: Uint8Array;
  /** By variant: USES_STACK or 0. */
  readonly #stackUse: Uint8Array;
  readonly #twoPages = new Uint8Array(2 * LONGEST_INSTRUCTION + 2);
  /** Of the block that was built last: its instructions and their bytes, and the bank offset of the second page of one that has two, or -1. */
  count = 0;
  bytes = 0;
  second = -1;

  constructor(cpu: Cpu, decode: Decode, into: DecodedOperation, variants: readonly Variant[], handlers: HandlerNumbers) {
    this.#cpu = cpu;
    this.#decode = decode;
    this.#into = into;
    this.#handlers = handlers;
    this.#isRelative = Uint8Array.from(variants, ({ access }) => (access.some(({ kind }) => kind === "relative") ? 1 : 0));
    this.#stackUse = Uint8Array.from(variants, ({ instruction }) =>
      STACK_INSTRUCTION.test(instruction.mnemonic) ? USES_STACK : 0,
    );
  }

  /** Number of the variant that was decoded last: that of the one instruction of a block of one. */
  get decoded(): number {
    return this.#into.handler;
  }

  /**
   * At most `most` instructions from `physical`, which is where the linear address of `state.rip` (halves) leads, into records at
   * `header`. Raises what fetching them raises.
   */
  build(header: number, physical: number, lo: number, hi: number, most: number): void {
    const cpu = this.#cpu;
    const { u8, u32 } = cpu;
    const codeSize = u32[CODE_SIZE] as 16 | 32 | 64;
    const flat = isFlat(cpu);
    const inPage = PAGE_BYTES - (physical & (PAGE_BYTES - 1));
    let within = inPage;
    if (codeSize !== 64) within = Math.min(within, u32[(segmentOffset(CS) + SEG_LIMIT) >>> 2] - u32[RIP] + 1);
    // Ends before the next instruction breakpoint, which is met when it is looked up
    const stop = cpu.breakpoints.hasFetch ? cpu.breakpoints.instructionDistance(lo, hi) || PAGE_BYTES : PAGE_BYTES;
    let offset = 0;
    let count = 0;
    let record = header + OP_BYTES;
    let second = -1;
    for (let ends = false; !ends && count < most && offset < Math.min(within, stop); ) {
      let result = this.#decode(u8, physical + offset, within - offset, codeSize, this.#into);
      if (result === "incomplete") {
        if (count > 0) break;
        if (within < inPage) cpu.raise(Vector.GP, 0);
        second = pageAfter(cpu, lo, hi);
        result = this.#decodeAcross(physical, inPage, second, codeSize);
      }
      switch (result) {
        case "ok":
          this.#write(record, offset, codeSize, flat);
          ends = this.#handlers.endsBlock[this.#into.handler] !== 0;
          offset += this.#into.length;
          break;
        case "undefined":
          this.#writeSynthetic(record, offset, Synthetic.undefinedInstruction);
          offset = Math.min(offset + LONGEST_INSTRUCTION, Math.max(within, offset + 1));
          ends = true;
          break;
        default:
          this.#writeSynthetic(record, offset, Synthetic.tooLong);
          offset = Math.min(offset + LONGEST_INSTRUCTION, Math.max(within, offset + 1));
          ends = true;
      }
      record += OP_BYTES;
      count++;
      if (second >= 0) break;
    }
    this.#writeSynthetic(record, offset, Synthetic.end);
    const at = header >>> 2;
    u32[at + (block.count >>> 2)] = count;
    u32[at + (block.charge >>> 2)] = count;
    u32[at + (block.physical >>> 2)] = physical;
    u32[at + (block.bytes >>> 2)] = offset;
    u32[at + (block.taken >>> 2)] = 0;
    u32[at + (block.next >>> 2)] = 0;
    u32[at + (block.entries >>> 2)] = 0;
    u32[at + (block.region >>> 2)] = 0;
    this.count = count;
    this.bytes = offset;
    this.second = second;
  }

  #decodeAcross(physical: number, inFirst: number, second: number, codeSize: 16 | 32 | 64): ReturnType<Decode> {
    const { u8 } = this.#cpu;
    const bytes = this.#twoPages;
    bytes.fill(0);
    for (let i = 0; i < inFirst && i < LONGEST_INSTRUCTION; i++) bytes[i] = u8[physical + i];
    for (let i = inFirst; i <= LONGEST_INSTRUCTION; i++) bytes[i] = u8[second + i - inFirst];
    const result = this.#decode(bytes, 0, LONGEST_INSTRUCTION + 1, codeSize, this.#into);
    return result === "incomplete" ? "tooLong" : result;
  }

  #writeSynthetic(record: number, offset: number, handler: number): void {
    const { u16, u32 } = this.#cpu;
    for (let word = record >>> 2; word < (record + OP_BYTES) >>> 2; word++) u32[word] = 0;
    u16[(record + op.handler) >>> 1] = handler;
    u16[(record + op.segment) >>> 1] = segmentOffset(DS);
    u16[(record + op.base) >>> 1] = state.zero;
    u16[(record + op.index) >>> 1] = state.zero;
    u16[(record + op.ripOffset) >>> 1] = offset;
  }

  #write(record: number, offset: number, codeSize: number, flat: boolean): void {
    const { u8, u16, i32, u32 } = this.#cpu;
    const from = this.#into;
    const variant = from.handler;
    const end = offset + from.length;
    // RIP-relative displacements count from the end of the instruction, ours from the start of the block
    const displacement = from.ripRelative ? from.displacement + end : from.displacement;
    const index = from.ripRelative && displacement > 0x7fff_ffff ? state.fourGib : from.index;
    const numbers = this.#handlers;
    let handler = numbers.general[variant];
    // FS and GS have slots of their own, which come last; CS is flat for reading only
    const isFlatHere = from.segment <= segmentOffset(DS) && (codeSize === 64 || from.segment !== segmentOffset(CS));
    if (flat && from.addressSize === codeSize && isFlatHere) {
      handler = index === state.zero ? numbers.flatNoIndex[variant] : numbers.flat[variant];
    }
    const word = record >>> 2;
    const half = record >>> 1;
    u16[half + (op.handler >>> 1)] = handler;
    u8[record + op.length] = from.length;
    u8[record + op.scale] = from.scale;
    u16[half + (op.a >>> 1)] = from.a;
    u16[half + (op.b >>> 1)] = from.b;
    u16[half + (op.base >>> 1)] = from.base;
    u16[half + (op.index >>> 1)] = index;
    u16[half + (op.segment >>> 1)] = from.segment;
    u16[half + (op.ripOffset >>> 1)] = offset;
    i32[word + (op.displacement >>> 2)] = displacement;
    u8[record + op.addressSize] = from.addressSize;
    u8[record + op.prefixes] = from.prefixes | this.#stackUse[variant];
    u16[half + (op.c >>> 1)] = from.c;
    let low = from.immediateLow >>> 0;
    let high = from.immediateHigh >>> 0;
    if (this.#isRelative[variant] !== 0) {
      const sum = low + end;
      low = sum >>> 0;
      if (sum > 0xffff_ffff) high = (high + 1) >>> 0;
    }
    u32[word + (op.immediate >>> 2)] = low;
    u32[word + (op.immediate >>> 2) + 1] = high;
  }
}
