/**
 * Pages of the bank that decoded code came from: which blocks lie in each, which 64-byte granules they cover, and what the bytes
 * were when they were decoded, so that changes by whoever writes past the CPU (devices, software in root mode) are noticed.
 * Every entry to the guest compares some, so the copies lie in the bank, where generated code compares them sixteen bytes at a time.
 */
import { type OperationArena, recordsOf } from "./operation-arena.ts";
import type { Code } from "./wasm/code.ts";
import { FunctionBuilder, type ModuleBuilder, signature } from "./wasm/module-builder.ts";

export const PAGE_BYTES = 4096;
const GRANULE_LOG2 = 6;
const GRANULE_BYTES = 1 << GRANULE_LOG2;
const GRANULES = PAGE_BYTES >>> GRANULE_LOG2;
const FIRST_SLOTS = 8;
/** Copies: the number of the granule of each in a byte, and then the granules, one after the other. */
const NUMBERS_BYTES = GRANULES;

/** Granules of one page. */
export class GranuleSet {
  readonly #has = new Uint8Array(GRANULES);

  clear(): void {
    this.#has.fill(0);
  }
  /** Those of `bytes` from an offset in the page on; what is past the page is another's. */
  add(offset: number, bytes: number): void {
    const last = Math.min((offset + bytes - 1) >>> GRANULE_LOG2, GRANULES - 1);
    for (let granule = offset >>> GRANULE_LOG2; granule <= last; granule++) this.#has[granule] = 1;
  }
  has(granule: number): boolean {
    return this.#has[granule] !== 0;
  }
}

const bytesOf = (slots: number): number => NUMBERS_BYTES + slots * GRANULE_BYTES;

export class CodePage {
  /** Bank offset of the page. */
  readonly offset: number;
  /** Headers by key: offset in the page and mode. */
  readonly blocks = new Map<number, number>();
  /** Headers of blocks that begin in another page and end in this one. */
  readonly tails = new Set<number>();
  /** Epoch of trust (see blocks.ts) in which the bytes were last compared. */
  checkedEpoch = -1;
  /** By granule: 0, or 1 more than the number of its copy. */
  readonly #granules = new Uint8Array(GRANULES);
  /** Bank offset of the copies of covered granules, and for how many there is room: few granules of most pages hold code that ran. */
  #copies = 0;
  #slots = 0;
  #copied = 0;
  readonly #u8: Uint8Array;
  readonly #arena: OperationArena;

  /** `bank`: all of it. `arena`: where in it copies are kept. */
  constructor(offset: number, bank: Uint8Array, arena: OperationArena) {
    this.offset = offset;
    this.#u8 = bank;
    this.#arena = arena;
  }

  get isEmpty(): boolean {
    return this.blocks.size === 0 && this.tails.size === 0;
  }

  /** `bytes` from `start` (bank offset, in this page) were decoded. What has a copy keeps it: older blocks were made of that. */
  cover(start: number, bytes: number): void {
    const last = (start - this.offset + bytes - 1) >>> GRANULE_LOG2;
    for (let granule = (start - this.offset) >>> GRANULE_LOG2; granule <= last; granule++) {
      if (this.#granules[granule] !== 0) continue;
      this.#granules[granule] = ++this.#copied;
      if (this.#copied > this.#slots) this.#grow();
      this.#copy(granule);
    }
  }
  /** Covers no more than what blocks are made of. */
  coverOnly(used: GranuleSet): void {
    // Some have no copy, and then none may take another's place: the page counts as changed anyway
    if (this.#copied > this.#slots) return;
    for (let granule = 0; granule < GRANULES; granule++) {
      if (this.#granules[granule] === 0 || used.has(granule)) continue;
      // The last copy takes its place
      const from = --this.#copied;
      const to = this.#granules[granule] - 1;
      this.#granules[this.#u8[this.#copies + from]] = to + 1;
      this.#granules[granule] = 0;
      if (to === from) continue;
      this.#u8[this.#copies + to] = this.#u8[this.#copies + from];
      const copies = this.#copies + NUMBERS_BYTES;
      this.#u8.copyWithin(copies + to * GRANULE_BYTES, copies + from * GRANULE_BYTES, copies + (from + 1) * GRANULE_BYTES);
    }
  }
  /** `bytes` from `start` were written, and no block is made of them: what is covered beside such a block changed rightly. */
  refresh(start: number, bytes: number): void {
    const last = (start - this.offset + bytes - 1) >>> GRANULE_LOG2;
    for (let granule = (start - this.offset) >>> GRANULE_LOG2; granule <= last; granule++) {
      if (this.#granules[granule] !== 0) this.#copy(granule);
    }
  }
  #copy(granule: number): void {
    const number = this.#granules[granule] - 1;
    if (number >= this.#slots) return;
    const from = this.offset + granule * GRANULE_BYTES;
    this.#u8[this.#copies + number] = granule;
    this.#u8.copyWithin(this.#copies + NUMBERS_BYTES + number * GRANULE_BYTES, from, from + GRANULE_BYTES);
  }
  /** Where there is no room, the copies end before the granules do, which counts as changed. */
  #grow(): void {
    const slots = Math.min(GRANULES, Math.max(FIRST_SLOTS, 2 * this.#slots));
    const larger = this.#arena.take(recordsOf(bytesOf(slots)));
    if (larger === 0) return;
    if (this.#slots > 0) this.#u8.copyWithin(larger, this.#copies, this.#copies + bytesOf(this.#slots));
    this.release();
    this.#copies = larger;
    this.#slots = slots;
  }
  /** Gives back the room of the copies. */
  release(): void {
    if (this.#slots > 0) this.#arena.giveBack(this.#copies, recordsOf(bytesOf(this.#slots)));
    this.#slots = 0;
  }
  uncoverAll(): void {
    this.#granules.fill(0);
    this.#copied = 0;
  }
  isCovered(start: number, bytes: number): boolean {
    const last = (start - this.offset + bytes - 1) >>> GRANULE_LOG2;
    for (let granule = (start - this.offset) >>> GRANULE_LOG2; granule <= last; granule++) {
      if (this.#granules[granule] !== 0) return true;
    }
    return false;
  }
  /** False when covered bytes are no longer what was decoded. `equal` is what `buildGranulesEqual` made. */
  isUnchanged(equal: GranulesEqual): boolean {
    if (this.#copied === 0) return true;
    return this.#copied <= this.#slots && equal(this.#copies, this.#copied, this.offset) !== 0;
  }
}

/** (copies, count, page) -> 1 when each of the first `count` copies is what the page has, else 0. */
export type GranulesEqual = (copies: number, count: number, page: number) => number;

export function buildGranulesEqual(module: ModuleBuilder): number {
  const type = signature(["i32", "i32", "i32"], ["i32"]);
  const f = new FunctionBuilder(module.typeIndex(type), type.parameters.length);
  const [copies, count, page] = [0, 1, 2] as const;
  const number = f.allocate("i32");
  const copy = f.allocate("i32");
  const granule = f.allocate("i32");
  const c = f.code;
  c.get(copies).i32(NUMBERS_BYTES).op("i32.add").set(copy);
  const next = c.loop();
  c.get(copies).get(number).op("i32.add").memory("i32.load8_u", 0);
  c.i32(GRANULE_LOG2).op("i32.shl").get(page).op("i32.add").set(granule);
  for (let at = 0; at < GRANULE_BYTES; at += VECTOR_BYTES) {
    emitDifference(c, copy, granule, at);
    if (at > 0) c.op("v128.or");
  }
  c.op("v128.any_true").if();
  c.i32(0).return().end();
  c.get(copy).i32(GRANULE_BYTES).op("i32.add").set(copy);
  c.get(number).i32(1).op("i32.add").tee(number).get(count).op("i32.lt_u").brIf(next).end();
  c.i32(1);
  return module.add(f);
}

const VECTOR_BYTES = 16;
function emitDifference(c: Code, a: number, b: number, at: number): void {
  c.get(a).memory("v128.load", at).get(b).memory("v128.load", at).op("v128.xor");
}
