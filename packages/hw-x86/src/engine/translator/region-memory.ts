/**
 * The part of the region emitter that reaches guest memory, and leaves the region where that does not go on: probes of the TLB, and places
 * that are remembered (place-cache.ts).
 */
import { gprOffset, RSP, SEG_EFFECTIVE_BASE, SS, segmentOffset, state, TLB, TLB_ADDEND, TLB_WRITE_TAG } from "../cpu-state.ts";
import type { Int, Size } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { emitMatch, emitPlace, emitTagUse } from "../interpreter/memory-code.ts";
import { missedAccess } from "../interpreter/region-support.ts";
import { makeResult, NOTHING, type Node, type Scope } from "../interpreter/schedule.ts";
import { asInt, LOAD64, nodeOf, STORE64 } from "../node-values.ts";
import type { Code } from "../wasm/code.ts";
import { FlagEmitter } from "./flag-emitter.ts";
import { emitSettle, type FlagState } from "./flag-state.ts";
import { LARGEST_CACHED, NO_PAGE, type Place } from "./place-cache.ts";
import { type OperationRecord, type RegionBlock, type RegionFrame, Untranslatable } from "./region.ts";
import { emitSegmentedLinear, isFlatCandidate } from "./segmented-memory.ts";

/** The block of an operation: its header, and its distance from the start of the page. */
export type OperationBlock = Pick<RegionBlock, "header" | "offset">;

/** A linear address, and what it has in common with others, see `#linearIn`. */
export interface Linear {
  readonly node: Node;
  readonly key: string | undefined;
}
const STACK = "stack";
/** Rows name the segment of pushes and pops. */
const keyOfSegment = (segment: number): string | undefined => (segment === SS ? STACK : undefined);

export abstract class RegionMemory extends FlagEmitter {
  protected readonly record: OperationRecord;
  protected readonly block: OperationBlock;
  /** Keys of accesses that a place may be remembered for. */
  protected readonly placeKeys: string[] = [];
  /** It may leave the region before it has written anything. */
  protected mayLeave = false;

  constructor(frame: RegionFrame, record: OperationRecord, block: OperationBlock, flags: FlagState) {
    super(record.variant, frame, flags);
    this.record = record;
    this.block = block;
  }

  abstract address(operand: FormOperand): Int;

  // ---- Leaving ----

  /** Something that may leave follows: nothing may have been written. */
  protected leaves(): void {
    if (this.hasWritten) throw new Untranslatable();
    this.mayLeave = true;
  }
  protected leave(c: Code, flags: FlagState): void {
    const { next, header, exit, layout } = this.frame;
    emitSettle(c, this.frame, flags);
    layout.operation(c, this.block, this.record.at);
    c.set(next);
    layout.header(c, this.block);
    c.set(header).br(exit);
  }

  // ---- Guest memory ----

  load(segment: number, offset: Int, size: Size): Int {
    return asInt(this.loadGuest(this.#linearOf(segment, offset, size, false), size));
  }
  store(segment: number, offset: Int, size: Size, value: Int): void {
    this.storeGuest(this.#linearOf(segment, offset, size, true), size, nodeOf(value));
  }
  loadDefault(offset: Int, size: Size): Int {
    return asInt(this.loadGuest(this.#linearIn(this.record.segment, offset, size, false), size));
  }
  storeDefault(offset: Int, size: Size, value: Int): void {
    this.storeGuest(this.#linearIn(this.record.segment, offset, size, true), size, nodeOf(value));
  }
  probeStoreDefault(offset: Int, size: Size): void {
    this.#probeOnly(this.#linearIn(this.record.segment, offset, size, true), size);
  }
  probeStore(segment: number, offset: Int, size: Size): void {
    this.#probeOnly(this.#linearOf(segment, offset, size, true), size);
  }
  #probeOnly(linear: Linear, size: Size): void {
    this.effect([this.probe(linear, size / 8, true)], NOTHING, (c) => c.op("drop"));
  }
  protected linear(operand: FormOperand, bits: number, isWrite: boolean): Linear {
    const { segment, base, index, displacement } = this.record;
    let key: string | undefined;
    if (base === gprOffset(RSP)) key = STACK;
    else if (base === state.zero || base === state.blockRip) key = `${base}+${index}+${displacement >>> 12}`;
    else key = `${base}`;
    return this.#linearIn(segment, this.address(operand), bits, isWrite, key);
  }
  #linearOf(segment: number, offset: Int, bits: number, isWrite: boolean): Linear {
    return this.#linearIn(segmentOffset(segment), offset, bits, isWrite, keyOfSegment(segment));
  }
  /** `key` names what the access has in common with others that go to the same page most likely. */
  #linearIn(slot: number, offset: Int, bits: number, isWrite: boolean, key?: string): Linear {
    const { codeSize, range } = this.frame;
    if (range === undefined && isFlatCandidate(slot, isWrite && codeSize !== 64)) return { node: nodeOf(offset), key };
    if (codeSize !== 64) {
      this.leaves();
      const { flags } = this;
      const node = makeResult("i64");
      const access = { slot, bytes: bits / 8, isWrite };
      const emit = (c: Code, scope: Scope): void => emitSegmentedLinear(c, scope, access, () => this.leave(c, flags));
      this.effect([nodeOf(offset)], NOTHING, emit, node);
      return { node, key: key && (key === STACK ? key : `${slot}:${key}`) };
    }
    return { node: nodeOf(this.plain("i64.add", offset, this.state(slot + SEG_EFFECTIVE_BASE, 64))), key: `${slot}` };
  }
  /** Of accesses to the stack reads too go by the permission to write, since one place serves both. */
  #placeKey(key: string | undefined, bytes: number, isWrite: boolean): string | undefined {
    if (key === undefined || bytes > LARGEST_CACHED || (bytes & (bytes - 1)) !== 0) return undefined;
    const name = key === STACK ? key : `${key}${isWrite ? "w" : "r"}`;
    this.placeKeys.push(name);
    return name;
  }
  /** Pushes what a miss function takes, after the linear address, and calls it. */
  #callMiss(c: Code, miss: number, bytes: number): void {
    const { gpr, budget, layout } = this.frame;
    layout.header(c, this.block);
    c.i32(missedAccess(this.record.at - this.block.header, bytes));
    c.get(gpr[RSP] as number)
      .get(budget)
      .call(miss);
  }
  /** Leaves the region if the number on the stack is not zero. */
  #bail(c: Code, flags: FlagState): void {
    c.ifUnlikely();
    emitSettle(c, this.frame, flags);
    c.br(this.frame.bail).end();
  }
  /** Bank offset of guest memory that may be read, or read and written. */
  protected probe({ node, key }: Linear, bytes: number, isWrite: boolean): Node {
    this.leaves();
    const { support, places } = this.frame;
    const { flags } = this;
    const place = makeResult("i32");
    const name = this.#placeKey(key, bytes, isWrite);
    const miss = isWrite ? support.missUpdate : support.missRead;
    this.effect(
      [node],
      NOTHING,
      (c, scope) => {
        const address = scope.temporary("i64");
        const entry = scope.temporary("i32");
        const tag = scope.temporary("i64");
        c.set(address);
        const known = name === undefined ? undefined : places.find(name);
        if (known === undefined) {
          emitMatch(c, address, entry, tag, isWrite, undefined, bytes);
          c.op("i32.eqz").ifUnlikely("i32");
          emitTagUse(c, tag);
          c.get(address);
          this.#callMiss(c, miss, bytes);
          c.tee(entry).op("i32.eqz");
          this.#bail(c, flags);
          c.get(entry).else();
          emitPlace(c, address, entry);
          c.end();
        } else {
          emitElsewhere(c, address, known, bytes);
          emitMatch(c, address, entry, tag, isWrite, undefined, bytes);
          c.op("i32.eqz").ifUnlikely();
          c.get(address);
          this.#callMiss(c, miss, bytes);
          c.tee(entry).op("i32.eqz");
          this.#bail(c, flags);
          c.i32(0).get(entry).get(address).op("i32.wrap_i64").op("i32.sub").memory("i32.store", known.addend);
          c.i32(0).i64(NO_PAGE).memory("i64.store", known.page);
          c.else();
          emitRemember(c, tag, entry, known, !isWrite && key === STACK);
          c.end().end();
          c.get(address).op("i32.wrap_i64").loadAt("i32.load", known.addend).op("i32.add");
        }
        scope.release("i64", address);
        scope.release("i32", entry);
        scope.release("i64", tag);
      },
      place,
    );
    return place;
  }
  protected loadGuest(linear: Linear, size: Size): Node {
    const place = this.probe(linear, size / 8, false);
    const value = makeResult("i64", size);
    this.effect([place], NOTHING, (c) => c.memory(LOAD64[size], 0), value);
    return value;
  }
  protected storeGuest(linear: Linear, size: Size, value: Node): void {
    this.storeThrough(linear, [value], size / 8, STORE64[size]);
  }
  protected storeVector(linear: Linear, value: Node): void {
    this.storeThrough(linear, [value], 16, "v128.store");
  }
  /** The low 32 or 64 bits, without a way through a general register. */
  protected storeLow(linear: Linear, bits: 32 | 64, vector: Node): void {
    const shape = bits === 32 ? "f32x4" : "f64x2";
    const low = this.value(`f${bits}`, [vector], (c) => c.lane(`${shape}.extract_lane`, 0));
    this.storeThrough(linear, [low], bits / 8, `f${bits}.store`);
  }
  /** `values`, one behind the other, with nothing in between. */
  protected storeThrough({ node, key }: Linear, values: readonly Node[], bytes: number, store: string): void {
    this.leaves();
    this.hasWritten = true;
    const { support, places } = this.frame;
    const { flags } = this;
    const name = this.#placeKey(key, bytes, true);
    this.effect([node, ...values], NOTHING, (c: Code, scope: Scope) => {
      const held = values.map(({ type }) => scope.temporary(type));
      const address = scope.temporary("i64");
      const entry = scope.temporary("i32");
      const tag = scope.temporary("i64");
      for (const local of [...held].reverse()) c.set(local);
      c.set(address);
      const each = bytes / values.length;
      /** With the place of the first in a local. */
      const storeAt = (place: number): void => {
        for (const [i, local] of held.entries())
          c.get(place)
            .get(local)
            .memory(store, i * each);
      };
      const known = name === undefined ? undefined : places.find(name);
      const storeInMiss = (): void => {
        for (const [i, local] of held.entries())
          c.i32(0)
            .get(local)
            .memory(store, state.storeValue + i * each);
        c.get(address);
        this.#callMiss(c, support.missWrite, bytes);
        c.op("i32.eqz");
        this.#bail(c, flags);
      };
      if (known === undefined) {
        emitMatch(c, address, entry, tag, true, undefined, bytes);
        c.op("i32.eqz").ifUnlikely();
        emitTagUse(c, tag);
        storeInMiss();
        c.else();
        emitPlace(c, address, entry);
        if (held.length === 1)
          c.get(held[0] as number)
            .memory(store, 0)
            .end();
        else {
          c.set(entry);
          storeAt(entry);
          c.end();
        }
      } else {
        const done = c.block();
        emitElsewhere(c, address, known, bytes);
        emitMatch(c, address, entry, tag, true, undefined, bytes);
        c.op("i32.eqz").ifUnlikely();
        storeInMiss();
        c.br(done).end();
        emitRemember(c, tag, entry, known, false);
        c.end();
        c.get(address).op("i32.wrap_i64").loadAt("i32.load", known.addend).op("i32.add");
        if (held.length === 1) c.get(held[0] as number).memory(store, 0);
        else {
          c.set(entry);
          storeAt(entry);
        }
        c.end();
      }
      for (const [i, { type }] of values.entries()) scope.release(type, held[i] as number);
      scope.release("i64", address);
      scope.release("i32", entry);
      scope.release("i64", tag);
    });
  }
  protected storePlace(place: Node, size: Size, value: Node): void {
    this.hasWritten = true;
    this.effect([place, value], NOTHING, (c) => c.memory(STORE64[size], 0));
  }
}

/** Opens an `if`: the access is not, or not surely, in the page remembered. Leaves out what is not aligned, which may cross pages. */
function emitElsewhere(c: Code, address: number, { page }: Place, bytes: number): void {
  c.get(address)
    .i64(-4096 | (bytes - 1))
    .op("i64.and")
    .loadAt("i64.load", page)
    .op("i64.ne")
    .ifUnlikely();
}
/** After a match: remembers the entry; with `needsWrite` only one that allows writing. */
function emitRemember(c: Code, tag: number, entry: number, { page, addend }: Place, needsWrite: boolean): void {
  c.i32(0)
    .get(entry)
    .memory("i32.load", TLB + TLB_ADDEND)
    .memory("i32.store", addend);
  c.i32(0).get(tag).i64(-4096).op("i64.and");
  if (needsWrite) {
    c.i64(NO_PAGE);
    c.get(tag);
    c.get(entry).memory("i64.load", TLB + TLB_WRITE_TAG);
    c.op("i64.eq").op("select");
  }
  c.memory("i64.store", page);
}
