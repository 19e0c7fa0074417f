/**
 * Decoded code: blocks of operation records in the arena of the bank, found by the physical address of their first byte and the
 * mode they were decoded for. A table in the bank leads generated code from RIP to them; what it does not know comes here.
 */

import { clearBlockTables, codePageAt, enterByPhysical, enterByRip, pageAtRip } from "./block-tables.ts";
import { CodePage, type GranulesEqual, PAGE_BYTES } from "./code-pages.ts";
import type { Cpu } from "./cpu.ts";
import { CS, DS, OP_ARENA, OP_ARENA_BYTES, SEG_LIMIT, segmentOffset, state } from "./cpu-state.ts";
import type { Decode, DecodedOperation, Variant } from "./decoder/variant.ts";
import { cutAfter, Synthetic } from "./interpreter/synthetic.ts";
import { isFlat } from "./lookup-base.ts";
import { block, OP_BYTES, op } from "./operation.ts";
import { OperationArena, recordsOf } from "./operation-arena.ts";
import { Vector } from "./system/bits.ts";
import { protectCodePage, translateFetchHalves } from "./system/paging.ts";
import { isInRange, reachOf } from "./translator/code-range.ts";
import type { CodeSize } from "./translator/region.ts";
import type { Translator } from "./translator/translator.ts";

/** The part of the generated interpreter that decoding needs; see interpreter-module.ts. */
export interface HandlerNumbers {
  readonly general: Uint16Array;
  readonly flat: Uint16Array;
  readonly flatNoIndex: Uint16Array;
  readonly endsBlock: Uint8Array;
}

const LONGEST_BLOCK = 64;
/** Records of a block beside those of its instructions: its header and its end. */
const FRAME_RECORDS = 2;
const LONGEST_RECORDS = LONGEST_BLOCK + FRAME_RECORDS;
/** Pages with code that are all compared when a guest is entered; where there are more, it is one in turn. */
const COMPARED_AT_ONCE = 4;
const LONGEST_INSTRUCTION = 15;
/** Truncated blocks are decoded here, at the end of the arena, and forgotten. */
const SCRATCH_BLOCK = OP_ARENA + OP_ARENA_BYTES - LONGEST_RECORDS * OP_BYTES;
/**
 * Decoded code, in bytes, above which blocks are dropped that hardly ran: of what a kernel runs until its init, half runs fewer than
 * ten times.
 */
const SWEEP_BYTES = 5.5 * (1 << 20);
/** What a block ran fewer times than, to be dropped: the next of these, as long as too much is left. Of what ran more, the count is worth keeping. */
const COLD_ENTRIES = [8, 64];
/** A charge that no budget covers: entering such a block returns to the engine, which looks for a fresh one. */
const DEAD = 0x7fff_ffff;

const RIP = state.rip >>> 2;
const CODE_SIZE = state.codeSize >>> 2;
const LOOKUP_BASE = state.lookupBase >>> 2;
const BLOCK_TAG = state.blockTag >>> 2;

export interface BlockStatistics {
  /** Decoded blocks that there are, and ways from block to block that need no lookup. */
  decoded: number;
  linked: number;
  /** Blocks dropped because they hardly ran, to make room; times that all were dropped. */
  cold: number;
  flushes: number;
}

export class Blocks {
  readonly #cpu: Cpu;
  readonly #decode: Decode;
  readonly #into: DecodedOperation;
  readonly #handlers: HandlerNumbers;
  readonly #isRelative: Uint8Array;
  readonly #pages = new Map<number, CodePage>();
  /** 1 for pages of the bank that hold code. */
  readonly #holdsCode: Uint8Array;
  /** Of blocks of one instruction across two pages: bank offset of the second page, and the bytes, by header. */
  readonly #straddling = new Map<number, { second: number; bytes: Uint8Array }>();
  readonly #twoPages = new Uint8Array(2 * LONGEST_INSTRUCTION + 2);
  readonly #arena = new OperationArena(LONGEST_RECORDS);
  /** Headers of dropped blocks that tables may still lead to. */
  #dead: number[] = [];
  readonly #sweepBytes: number;
  /** Bytes in use at which the next sweep is due. */
  #sweepAt: number;
  #cold = 0;
  #trust = 0;
  /** Where the comparison of pages in turn has come to. */
  #round: Iterator<CodePage> = this.#pages.values();
  #tagEpoch = 0;
  /** Times the arena was emptied. */
  flushes = 0;
  /** Set once, by the engine. */
  translator!: Translator;
  granulesEqual!: GranulesEqual;
  readonly #allocateHere = (bytes: number): number => this.#arena.take(recordsOf(bytes));

  constructor(
    cpu: Cpu,
    decode: Decode,
    into: DecodedOperation,
    variants: readonly Variant[],
    handlers: HandlerNumbers,
    sweepBytes = SWEEP_BYTES,
  ) {
    this.#cpu = cpu;
    this.#sweepBytes = this.#sweepAt = sweepBytes;
    this.#decode = decode;
    this.#into = into;
    this.#handlers = handlers;
    this.#holdsCode = new Uint8Array(Math.ceil(cpu.bankBytes / PAGE_BYTES));
    this.#isRelative = Uint8Array.from(variants, ({ access }) => (access.some(({ kind }) => kind === "relative") ? 1 : 0));
  }

  /** Counted when it is asked for. */
  statistics(): BlockStatistics {
    const { u32 } = this.#cpu;
    let decoded = 0;
    let linked = 0;
    for (const page of this.#pages.values()) {
      decoded += page.blocks.size;
      for (const header of page.blocks.values()) {
        if (u32[(header + block.taken) >>> 2] !== 0) linked++;
        if (u32[(header + block.next) >>> 2] !== 0) linked++;
      }
    }
    return { decoded, linked, cold: this.#cold, flushes: this.flushes };
  }

  holdsCode(pageOffset: number): boolean {
    return this.#holdsCode[pageOffset >>> 12] !== 0;
  }

  /** The block at `state.rip`, entered in the table. Raises what fetching there raises. */
  find(): number {
    const cpu = this.#cpu;
    const { u32 } = cpu;
    const { lo, hi } = this.#linear();
    if (cpu.breakpoints.hasFetch) {
      this.#meetBreakpoint(lo, hi);
      // Blocks of a page with breakpoints are made anew at each entry, and no table leads to them
      if (cpu.breakpoints.instructionDistance(lo, hi) !== 0)
        return this.#build(translateFetchHalves(cpu, lo, hi), lo, hi, LONGEST_BLOCK, true);
    }
    const physical = translateFetchHalves(cpu, lo, hi);
    const page = this.#page(physical);
    this.#validate(page);
    const key = this.#key(physical);
    let header = page.blocks.get(key);
    if (header !== undefined && this.#straddling.has(header) && !this.#isStraddlingValid(header, lo, hi)) {
      this.#kill(page, key, header);
      this.#unlink(page);
      header = undefined;
    }
    if (header === undefined) header = this.#build(physical, lo, hi, LONGEST_BLOCK, false);
    enterByRip(cpu, header);
    if (u32[CODE_SIZE] === 64 && !this.#straddling.has(header)) enterByPhysical(cpu, physical, header);
    return header;
  }

  /** Instruction breakpoints come before all that fetching may raise. */
  #meetBreakpoint(lo: number, hi: number): void {
    const hits = this.#cpu.breakpoints.atInstruction(lo, hi);
    if (hits !== 0) this.#cpu.raise(Vector.DB, undefined, BigInt(hits));
  }

  /** A block of at most `count` instructions at `state.rip`, for one run. `resumes`: past a breakpoint on the first of them. */
  truncated(count: number, resumes = false): number {
    const { lo, hi } = this.#linear();
    if (this.#cpu.breakpoints.hasFetch && !resumes) this.#meetBreakpoint(lo, hi);
    const physical = translateFetchHalves(this.#cpu, lo, hi);
    return this.#build(physical, lo, hi, Math.min(count, LONGEST_BLOCK), true);
  }

  /** Number of the variant that was decoded last: that of the one instruction of a block of one. */
  get decoded(): number {
    return this.#into.handler;
  }

  /** The block at that header has been entered so often that it is to be translated. */
  hot(header: number): void {
    const { u32 } = this.#cpu;
    const codeSize = u32[CODE_SIZE] as CodeSize;
    if (this.#straddling.has(header)) return;
    const first = u32[(header + block.physical) >>> 2];
    const page = this.#pages.get(first >>> 12);
    // A truncated block belongs to no page
    if (page === undefined || page.blocks.get(this.#key(first)) !== header) return;
    // Where the head's page lies in linear memory; the interpreter has noted the block that it is about to run
    const low = u32[state.blockRip >>> 2] & ~(PAGE_BYTES - 1);
    const high = u32[(state.blockRip >>> 2) + 1];
    const limit = u32[(segmentOffset(CS) + SEG_LIMIT) >>> 2];
    const pageRip = u32[state.blockRip >>> 2] - (first & (PAGE_BYTES - 1));
    const reach = isFlat(this.#cpu) ? undefined : reachOf(pageRip, codeSize, limit);
    this.translator.translate(
      header,
      {
        mode: { codeSize, stackMask: this.#cpu.u64[state.stackMask >>> 3] },
        reach,
        at: (offset) => {
          const isNear = offset >= 0 && offset < PAGE_BYTES;
          if (reach !== undefined && !(isNear && isInRange(reach, offset))) return undefined;
          const there = isNear ? page : this.#pageAt(low, high, offset);
          const found = there?.blocks.get(this.#key(offset));
          return found === undefined || this.#straddling.has(found) ? undefined : found;
        },
      },
      this.#allocateHere,
    );
  }
  /** The page, if the code TLB knows it, at a distance in bytes from a linear page (halves). */
  #pageAt(low: number, high: number, distance: number): CodePage | undefined {
    const sum = (low >>> 0) + distance;
    const carried = Math.floor(sum / 0x1_0000_0000);
    const offset = codePageAt(this.#cpu, sum >>> 0, high + carried);
    return offset === undefined ? undefined : this.#pages.get(offset >>> 12);
  }

  /** `bytes` at bank offset `start`, in one page, were written. `running`: the operation that is running, or 0. */
  written(start: number, bytes: number, running: number): void {
    const cpu = this.#cpu;
    const page = this.#pages.get(start >>> 12);
    if (page === undefined || !page.isCovered(start, bytes)) return;
    if (running !== 0) {
      const own = cpu.u32[state.blockStart >>> 2];
      const first = cpu.u32[(own + block.physical) >>> 2];
      const straddling = this.#straddling.get(own);
      if (start < first + cpu.u32[(own + block.bytes) >>> 2] && start + bytes > first) cutAfter(cpu.u16, running);
      else if (straddling !== undefined && straddling.second === page.offset) cutAfter(cpu.u16, running);
    }
    for (const [key, header] of [...page.blocks]) {
      const first = cpu.u32[(header + block.physical) >>> 2];
      if (start < first + cpu.u32[(header + block.bytes) >>> 2] && start + bytes > first) this.#kill(page, key, header);
    }
    for (const header of [...page.tails]) this.#killTail(page, header);
    page.uncoverAll();
    if (page.isEmpty) this.#forget(page);
    else {
      this.#unlink(page);
      for (const header of page.blocks.values()) {
        const first = cpu.u32[(header + block.physical) >>> 2];
        page.cover(first, Math.min(cpu.u32[(header + block.bytes) >>> 2], page.offset + PAGE_BYTES - first));
      }
    }
  }

  /** Drops every block. */
  flush(): void {
    const { u32 } = this.#cpu;
    for (const page of this.#pages.values()) this.#holdsCode[page.offset >>> 12] = 0;
    this.translator.flush();
    this.#pages.clear();
    this.#straddling.clear();
    this.#dead = [];
    this.#arena.clear();
    this.#sweepAt = this.#sweepBytes;
    clearBlockTables(this.#cpu);
    u32[state.blockStart >>> 2] = 0;
    this.flushes++;
  }

  /**
   * Makes room: drops the blocks that ran least and that no region has, until a third of what may be in use is free. The running block
   * stays, since it is about to be linked with the next, and what was cut off behind an operation is put back there.
   */
  #sweep(): void {
    const { u32 } = this.#cpu;
    const running = u32[state.blockStart >>> 2];
    const kept = this.translator.headers();
    kept.add(running);
    for (const header of this.#dead) if (header !== running) this.#giveBack(header);
    this.#dead = this.#dead.filter((header) => header === running);
    for (const entries of COLD_ENTRIES) {
      for (const page of [...this.#pages.values()]) this.#dropCold(page, entries, kept);
      if (this.#arena.used * 3 <= this.#sweepBytes * 2) break;
    }
    clearBlockTables(this.#cpu);
    this.#sweepAt = Math.max(this.#sweepBytes, (this.#arena.used * 7) / 4);
  }
  #dropCold(page: CodePage, entries: number, kept: ReadonlySet<number>): void {
    let dropped = 0;
    for (const [key, header] of page.blocks) {
      if (kept.has(header) || this.#straddling.has(header) || this.translator.entriesOf(header) >= entries) continue;
      page.blocks.delete(key);
      this.#giveBack(header);
      dropped++;
    }
    if (dropped === 0) return;
    this.#cold += dropped;
    if (page.isEmpty) this.#forget(page);
    else this.#unlink(page);
  }
  #giveBack(header: number): void {
    this.#arena.giveBack(header, this.#cpu.u32[(header + block.count) >>> 2] + FRAME_RECORDS);
  }

  // ---- Finding ----

  readonly #at = { lo: 0, hi: 0 };
  /** Linear address of RIP, halves as signed 32-bit numbers; raises #GP above the limit of CS. */
  #linear(): { lo: number; hi: number } {
    const { u32 } = this.#cpu;
    const at = this.#at;
    if (u32[CODE_SIZE] === 64) {
      at.lo = u32[RIP] | 0;
      at.hi = u32[RIP + 1] | 0;
    } else {
      if (u32[RIP + 1] !== 0 || u32[RIP] > u32[(segmentOffset(CS) + SEG_LIMIT) >>> 2]) this.#cpu.raise(Vector.GP, 0);
      at.lo = (u32[RIP] + u32[LOOKUP_BASE]) | 0;
      at.hi = 0;
    }
    return at;
  }
  #key(physical: number): number {
    const size = this.#cpu.u32[CODE_SIZE] >>> 5;
    return (physical & (PAGE_BYTES - 1)) * 8 + size * 2 + (isFlat(this.#cpu) ? 1 : 0);
  }
  #page(physical: number): CodePage {
    const number = physical >>> 12;
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = new CodePage((physical & ~(PAGE_BYTES - 1)) >>> 0, this.#cpu.u8, this.#arena);
      this.#pages.set(number, page);
    }
    return page;
  }
  /**
   * Devices and software in root mode may have written to guest memory, which no store reports: code that is looked up from now on
   * is compared again with what was decoded. (A page that the guest had mapped anew needs no flush, so tags alone would not tell.)
   * What tables lead to is not looked up: the page that the guest goes on in is compared at once, and of the others, where there are
   * many, one in turn.
   */
  distrust(): void {
    this.#trust++;
    if (this.#pages.size === 0) return;
    const offset = pageAtRip(this.#cpu);
    const page = offset === undefined ? undefined : this.#pages.get(offset >>> 12);
    if (page !== undefined) this.#validate(page);
    const others = this.#pages.size <= COMPARED_AT_ONCE ? this.#pages.size : 1;
    for (let i = 0; i < others; i++) this.#validate(this.#nextPage());
  }
  #nextPage(): CodePage {
    let next = this.#round.next();
    if (next.done === true) {
      this.#round = this.#pages.values();
      next = this.#round.next();
    }
    return next.value as CodePage;
  }

  /** Number of the present time in which a page, once compared, is trusted: until tags are renewed or `distrust`. */
  #trustEpoch(): number {
    const epoch = this.#cpu.u32[BLOCK_TAG] >>> 3;
    if (epoch !== this.#tagEpoch) {
      this.#tagEpoch = epoch;
      this.#trust++;
    }
    return this.#trust;
  }

  /** Compares the page with what was decoded, once in each epoch of trust. */
  #validate(page: CodePage): void {
    const epoch = this.#trustEpoch();
    if (page.checkedEpoch === epoch) return;
    page.checkedEpoch = epoch;
    if (page.isUnchanged(this.granulesEqual)) return;
    for (const [key, header] of [...page.blocks]) this.#kill(page, key, header);
    for (const header of [...page.tails]) this.#killTail(page, header);
    page.uncoverAll();
  }
  #isStraddlingValid(header: number, lo: number, hi: number): boolean {
    const cpu = this.#cpu;
    const straddling = this.#straddling.get(header);
    if (straddling === undefined) return true;
    const second = this.#secondPage(lo, hi);
    if (second !== straddling.second) return false;
    const first = cpu.u32[(header + block.physical) >>> 2];
    const inFirst = PAGE_BYTES - (first & (PAGE_BYTES - 1));
    return straddling.bytes.every((byte, i) => byte === cpu.u8[i < inFirst ? first + i : second + i - inFirst]);
  }
  #secondPage(lo: number, hi: number): number {
    const next = ((lo & ~(PAGE_BYTES - 1)) + PAGE_BYTES) | 0;
    return translateFetchHalves(this.#cpu, next, next === 0 ? (hi + 1) | 0 : hi);
  }

  // ---- Dropping ----

  #kill(page: CodePage, key: number, header: number): void {
    const { i32 } = this.#cpu;
    page.blocks.delete(key);
    this.translator.pageChanged(page.offset);
    i32[(header + block.charge) >>> 2] = DEAD;
    this.#dead.push(header);
    const straddling = this.#straddling.get(header);
    if (straddling !== undefined) {
      this.#straddling.delete(header);
      this.#pages.get(straddling.second >>> 12)?.tails.delete(header);
    }
  }
  /** After blocks of the page were dropped: links lead to blocks of the same page only. */
  #unlink(page: CodePage): void {
    const { i32 } = this.#cpu;
    for (const header of page.blocks.values()) {
      i32[(header + block.taken) >>> 2] = 0;
      i32[(header + block.next) >>> 2] = 0;
    }
  }
  #killTail(second: CodePage, header: number): void {
    second.tails.delete(header);
    const page = this.#pages.get(this.#cpu.u32[(header + block.physical) >>> 2] >>> 12);
    if (page === undefined) return;
    for (const [key, own] of [...page.blocks]) if (own === header) this.#kill(page, key, header);
    this.#unlink(page);
  }
  #forget(page: CodePage): void {
    this.#pages.delete(page.offset >>> 12);
    this.#holdsCode[page.offset >>> 12] = 0;
    page.release();
  }

  // ---- Building ----

  #cover(start: number, bytes: number): CodePage {
    const page = this.#page(start);
    if (this.#holdsCode[page.offset >>> 12] === 0) {
      this.#holdsCode[page.offset >>> 12] = 1;
      protectCodePage(this.#cpu, page.offset);
    }
    page.cover(start, bytes);
    return page;
  }

  #build(physical: number, lo: number, hi: number, most: number, isScratch: boolean): number {
    const cpu = this.#cpu;
    const { u8, u32 } = cpu;
    if (!isScratch) {
      if (this.#arena.used >= this.#sweepAt) this.#sweep();
      if (this.#arena.room(LONGEST_RECORDS) === 0) this.flush();
      this.#page(physical).checkedEpoch = this.#trustEpoch();
    }
    let header = isScratch ? SCRATCH_BLOCK : this.#arena.room(LONGEST_RECORDS);
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
        second = this.#secondPage(lo, hi);
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
    u32[at + (block.entries >>> 2)] = isScratch ? 0 : this.translator.initialEntries;
    u32[at + (block.region >>> 2)] = 0;
    if (!isScratch) header = this.#settle(header, count + FRAME_RECORDS);
    const page = this.#cover(physical, Math.min(offset, inPage));
    if (second >= 0) this.#noteStraddling(header, physical, inPage, second, offset, isScratch);
    if (isScratch) return header;
    page.blocks.set(this.#key(physical), header);
    return header;
  }

  /** A block built where there is room for any goes to where there is room for it. */
  #settle(built: number, records: number): number {
    const at = this.#arena.take(records);
    if (at !== built) this.#cpu.u8.copyWithin(at, built, built + records * OP_BYTES);
    return at;
  }

  #noteStraddling(header: number, physical: number, inPage: number, second: number, bytes: number, isScratch: boolean): void {
    const { u8 } = this.#cpu;
    const inSecond = Math.max(bytes - inPage, 1);
    const page = this.#cover(second, inSecond);
    if (isScratch) return;
    page.tails.add(header);
    const copy = new Uint8Array(inPage + inSecond);
    copy.set(u8.subarray(physical, physical + inPage));
    copy.set(u8.subarray(second, second + inSecond), inPage);
    this.#straddling.set(header, { second, bytes: copy });
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
    u8[record + op.prefixes] = from.prefixes;
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
