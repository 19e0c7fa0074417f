/**
 * Decoded code: blocks of operation records in the arena of the bank, found by the physical address of their first byte and the
 * mode they were decoded for. A table in the bank leads generated code from RIP to them; what it does not know comes here.
 */

import { BlockBuilder, FRAME_RECORDS, type HandlerNumbers, LONGEST_BLOCK, LONGEST_RECORDS } from "./block-builder.ts";
import { clearBlockTables, codePageAt, enterByPhysical, enterByRip, pageAtRip } from "./block-tables.ts";
import { CodePage, GranuleSet, type GranulesEqual, PAGE_BYTES } from "./code-pages.ts";
import type { Cpu } from "./cpu.ts";
import { CS, OP_ARENA, OP_ARENA_BYTES, SEG_LIMIT, segmentOffset, state } from "./cpu-state.ts";
import type { Decode, DecodedOperation, Variant } from "./decoder/variant.ts";
import { cutAfter } from "./interpreter/synthetic.ts";
import { isFlat } from "./lookup-base.ts";
import { block, OP_BYTES } from "./operation.ts";
import { OperationArena, recordsOf } from "./operation-arena.ts";
import { StraddlingBlocks } from "./straddling-blocks.ts";
import { Vector } from "./system/bits.ts";
import { protectCodePage, readableAt, translateFetchHalves } from "./system/paging.ts";
import { isInRange, reachOf } from "./translator/code-range.ts";
import type { CodeSize } from "./translator/region.ts";
import type { Translator } from "./translator/translator.ts";

/** Pages with code that are all compared when a guest is entered; where there are more, it is one in turn. */
const COMPARED_AT_ONCE = 4;
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
  readonly #builder: BlockBuilder;
  readonly #pages = new Map<number, CodePage>();
  /** 1 for pages of the bank that hold code. */
  readonly #holdsCode: Uint8Array;
  readonly #straddling: StraddlingBlocks;
  readonly #arena = new OperationArena(LONGEST_RECORDS);
  /** Headers of dropped blocks that tables may still lead to. */
  #dead: number[] = [];
  readonly #sweepBytes: number;
  /** Bytes in use at which the next sweep is due. */
  #sweepAt: number;
  #cold = 0;
  #trust = 0;
  /** Of the page in hand: what its blocks are made of. */
  readonly #kept = new GranuleSet();
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
    this.#builder = new BlockBuilder(cpu, decode, into, variants, handlers);
    this.#straddling = new StraddlingBlocks(cpu);
    this.#holdsCode = new Uint8Array(Math.ceil(cpu.bankBytes / PAGE_BYTES));
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
    if (header !== undefined && this.#straddling.has(header) && !this.#straddling.isValid(header, lo, hi)) {
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
    return this.#builder.decoded;
  }

  /** The interpreter asks whether the block at that header, which it enters, is to be translated. */
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
    this.translator.ask(
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
        pointerAt: (offset) => (reach === undefined && codeSize === 64 ? this.#pointerAt(low, high, offset) : undefined),
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

  /** Where a pointer of 64 bits, read at a distance from a linear page (halves), leads, as such a distance; rounded when that is far. */
  #pointerAt(low: number, high: number, distance: number): number | undefined {
    const { u32 } = this.#cpu;
    const sum = (low >>> 0) + distance;
    const at = readableAt(this.#cpu, sum >>> 0, high + Math.floor(sum / 0x1_0000_0000));
    if (at === undefined || at % 8 !== 0) return undefined;
    return (u32[(at >>> 2) + 1] - (high >>> 0)) * 0x1_0000_0000 + u32[at >>> 2] - (low >>> 0);
  }

  /** `bytes` at bank offset `start`, in one page, were written. `running`: the operation that is running, or 0. */
  written(start: number, bytes: number, running: number): void {
    const cpu = this.#cpu;
    const page = this.#pages.get(start >>> 12);
    if (page === undefined || !page.isCovered(start, bytes)) return;
    if (running !== 0) {
      const own = cpu.u32[state.blockStart >>> 2];
      const first = cpu.u32[(own + block.physical) >>> 2];
      if (start < first + cpu.u32[(own + block.bytes) >>> 2] && start + bytes > first) cutAfter(cpu.u16, running);
      else if (this.#straddling.secondPage(own) === page.offset) cutAfter(cpu.u16, running);
    }
    const kept = this.#kept;
    kept.clear();
    const killed: number[] = [];
    page.blocks.forEach((header, key) => {
      const first = cpu.u32[(header + block.physical) >>> 2];
      const length = cpu.u32[(header + block.bytes) >>> 2];
      if (start >= first + length || start + bytes <= first) kept.add(first - page.offset, length);
      else {
        this.#kill(page, key, header);
        killed.push(header);
      }
    });
    for (const header of [...page.tails]) this.#killTail(page, header);
    if (page.isEmpty) {
      page.uncoverAll();
      this.#forget(page);
      return;
    }
    for (const header of killed) this.#unlinkFrom(page, header);
    page.coverOnly(kept);
    page.refresh(start, bytes);
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
    page.blocks.forEach((header, key) => {
      if (this.translator.counts.since(header) >= entries || kept.has(header) || this.#straddling.has(header)) return;
      page.blocks.delete(key);
      this.#giveBack(header);
      dropped++;
    });
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

  // ---- Dropping ----

  #kill(page: CodePage, key: number, header: number): void {
    const { i32 } = this.#cpu;
    page.blocks.delete(key);
    this.translator.pageChanged(page.offset);
    i32[(header + block.charge) >>> 2] = DEAD;
    this.#dead.push(header);
    const second = this.#straddling.secondPage(header);
    if (second !== undefined) {
      this.#straddling.delete(header);
      this.#pages.get(second >>> 12)?.tails.delete(header);
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
  /** After one was dropped whose header nothing else uses yet: the other links stay. */
  #unlinkFrom(page: CodePage, dropped: number): void {
    const { i32 } = this.#cpu;
    page.blocks.forEach((header) => {
      if (i32[(header + block.taken) >>> 2] === dropped) i32[(header + block.taken) >>> 2] = 0;
      if (i32[(header + block.next) >>> 2] === dropped) i32[(header + block.next) >>> 2] = 0;
    });
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
    const builder = this.#builder;
    const { u32 } = this.#cpu;
    if (!isScratch) {
      if (this.#arena.used >= this.#sweepAt) this.#sweep();
      if (this.#arena.room(LONGEST_RECORDS) === 0) this.flush();
      this.#page(physical).checkedEpoch = this.#trustEpoch();
    }
    let header = isScratch ? SCRATCH_BLOCK : this.#arena.room(LONGEST_RECORDS);
    builder.build(header, physical, lo, hi, most);
    if (!isScratch) {
      u32[(header + block.entries) >>> 2] = this.translator.counts.initial;
      header = this.#settle(header, builder.count + FRAME_RECORDS);
    }
    const inPage = PAGE_BYTES - (physical & (PAGE_BYTES - 1));
    const page = this.#cover(physical, Math.min(builder.bytes, inPage));
    if (builder.second >= 0) {
      const inSecond = Math.max(builder.bytes - inPage, 1);
      const second = this.#cover(builder.second, inSecond);
      if (!isScratch) {
        second.tails.add(header);
        this.#straddling.add(header, physical, builder.second, inSecond);
      }
    }
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
}
