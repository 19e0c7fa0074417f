/**
 * The emitter of translated regions: one operation, its operands known. General registers are locals that live as long as the
 * region runs, flags are described in flag-kinds.ts. What is rare (a fault, a helper) leaves for the interpreter, which runs the
 * operation from its beginning; so nothing that such a thing may still follow is written before it.
 */
import {
  CS,
  gprOffset,
  RSP,
  SEG_EFFECTIVE_BASE,
  SEG_LIMIT,
  SS,
  segmentOffset,
  state,
  TLB,
  TLB_ADDEND,
  TLB_READ_TAG,
  TLB_WRITE_TAG,
} from "../cpu-state.ts";
import type { Bool, Doubt, Emitter, Int, Size, Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { emitMatch, emitPlace } from "../interpreter/memory-code.ts";
import {
  FLAGS,
  GENERAL,
  makeResult,
  NO_ARGUMENTS,
  NOTHING,
  type Node,
  OTHER,
  type Scope,
  type Statement,
  VECTOR,
} from "../interpreter/schedule.ts";
import { asBool, asInt, asVec, integerSize, LOAD64, maskOf, nodeOf, STORE64, withOperand } from "../node-emitter.ts";
import type { Code } from "../wasm/code.ts";
import { isInRange } from "./code-range.ts";
import { NO_FACTS, type StateFact, type VectorFact, withFact } from "./facts.ts";
import { FlagEmitter } from "./flag-emitter.ts";
import { emitSettle, type FlagState } from "./flag-state.ts";
import { LARGEST_CACHED, NO_PAGE, type Place } from "./place-cache.ts";
import { type OperationRecord, type RegionBlock, type RegionFrame, Untranslatable } from "./region.ts";
import { emitSegmentedLinear, isFlatCandidate } from "./segmented-memory.ts";
import { UPPER_HALVES, VectorRegisters } from "./vector-registers.ts";

/** How an operation ends its block, if it does. */
export type Terminator =
  | { kind: "jump"; target: number }
  | { kind: "branch"; taken: number; next: number }
  | { kind: "indirect" };

export interface EmittedOperation {
  readonly statements: readonly Statement[];
  /** Statements that do nothing but write flags. */
  readonly flagWrites: readonly Statement[];
  /** Of these, those that keep flags from being lost that the operation itself replaces, if it writes all. */
  readonly releases: readonly Statement[];
  /** They write all flags, whatever happens. */
  readonly writesAllFlags: boolean;
  readonly readsFlags: boolean;
  /** It may leave the region before it has written anything. */
  readonly mayLeave: boolean;
  readonly terminator: Terminator | undefined;
  /** Keys of accesses that a place may be remembered for, in so many loops. */
  readonly places: readonly string[];
  readonly loopDepth: number;
  /** Where the flags are afterwards. */
  readonly flags: FlagState;
}

export class RegionEmitter extends FlagEmitter implements Emitter {
  readonly #record: OperationRecord;
  readonly #block: OperationBlock;
  readonly #loopDepth: number;
  readonly #placeKeys: string[] = [];
  #mayLeave = false;
  #terminator: Terminator | undefined;

  constructor(frame: RegionFrame, record: OperationRecord, block: OperationBlock, loopDepth: number, flags: FlagState) {
    super(record.variant, frame, flags);
    this.#record = record;
    this.#block = block;
    this.#loopDepth = loopDepth;
  }

  /** Throws Untranslatable for what only the interpreter does. */
  build(): EmittedOperation {
    const { instruction, operands, form } = this.variant;
    if (form.attributes.includes("noTranslate")) throw new Untranslatable();
    for (const requirement of instruction.requires ?? []) this.require(requirement);
    instruction.semantics(this, operands);
    return {
      statements: this.statements,
      flagWrites: this.flagWrites,
      releases: this.releases,
      writesAllFlags: this.writesAllFlags,
      readsFlags: this.readsFlags,
      mayLeave: this.#mayLeave,
      terminator: this.#terminator,
      places: this.#placeKeys,
      loopDepth: this.#loopDepth,
      flags: this.flags,
    };
  }

  // ---- Leaving ----

  /** Something that may leave follows: nothing may have been written. */
  #leaves(): void {
    if (this.hasWritten) throw new Untranslatable();
    this.#mayLeave = true;
  }
  #leave(c: Code, flags: FlagState): void {
    const { next, header, exit, layout } = this.frame;
    emitSettle(c, this.frame, flags);
    layout.operation(c, this.#block, this.#record.at);
    c.set(next);
    layout.header(c, this.#block);
    c.set(header).br(exit);
  }
  raise(): void {
    this.#leaves();
    if (this.depth === 0) throw new Untranslatable();
    const { flags } = this;
    this.effect(NO_ARGUMENTS, NOTHING, (c) => this.#leave(c, flags));
  }
  helper(): Bool {
    this.#leaves();
    if (this.depth === 0) throw new Untranslatable();
    const result = makeResult("i32");
    const { flags } = this;
    // What follows is never reached, and so has any type
    this.effect(NO_ARGUMENTS, NOTHING, (c) => this.#leave(c, flags), result);
    return asBool(result);
  }
  helperThenEndBlock(): void {
    throw new Untranslatable();
  }
  endBlock(): void {
    throw new Untranslatable();
  }
  repeat(): void {
    throw new Untranslatable();
  }
  stringRun(kind: "move" | "store"): void {
    if (this.frame.codeSize !== 64) throw new Untranslatable();
    this.#leaves();
    const { support } = this.frame;
    const run = kind === "move" ? support.moveRun : support.storeRun;
    const done = this.runNode(kind, run, (c) => this.frame.layout.operation(c, this.#block, this.#record.at));
    const { flags } = this;
    this.effect([nodeOf(done)], NOTHING, (c) => {
      c.op("i32.eqz").ifUnlikely();
      this.#leave(c, flags);
      c.end();
    });
    this.finishRun(kind);
  }
  override loopWhile(): void {
    throw new Untranslatable();
  }

  /** What is doubtful is the interpreter's. */
  override unless<V extends Int | Vec>(doubts: readonly Doubt[], fast: V): V {
    this.#leaves();
    const { flags } = this;
    for (const doubt of doubts) this.ifAll(doubt, () => this.effect(NO_ARGUMENTS, NOTHING, (c) => this.#leave(c, flags)));
    return fast;
  }

  // ---- Branches ----

  protected override branch(body: () => void): Statement[] {
    this.depth++;
    const statements = super.branch(body);
    this.depth--;
    return statements;
  }
  override if(condition: Bool, whenTrue: () => void, whenFalse?: () => void): void {
    const known = nodeOf(condition).constant;
    if (known !== undefined) {
      (known !== 0n ? whenTrue : whenFalse)?.();
      return;
    }
    const before = this.flags;
    const written = this.hasWritten;
    const onTrue = this.branch(whenTrue);
    const afterTrue = this.flags;
    const writtenTrue = this.hasWritten;
    this.flags = before;
    this.hasWritten = written;
    const onFalse = whenFalse === undefined ? [] : this.branch(whenFalse);
    this.meetBranches(onTrue, afterTrue, onFalse, this.flags);
    this.forgetHeld();
    this.hasWritten ||= writtenTrue;
    this.statements.push({ kind: "if", condition: nodeOf(condition), whenTrue: onTrue, whenFalse: onFalse });
  }

  // ---- Registers ----

  #local(index: number): number {
    this.frame.usedRegisters |= 1 << index;
    return this.frame.gpr[index] as number;
  }
  protected readRegister(index: number, size: Size, isHighByte = false): Node {
    const local = this.#local(index);
    const whole = this.value("i64", NO_ARGUMENTS, (c) => c.get(local), GENERAL);
    if (isHighByte) return nodeOf(this.and(this.shr(asInt(whole), this.int(8)), this.int(255)));
    const value = size === 64 ? whole : this.mask(whole, maskOf(size));
    this.noteHeld(value, index, size);
    return value;
  }
  #writeRegister(index: number, size: Size, value: Node, isHighByte = false): void {
    const local = this.#local(index);
    this.frame.writtenRegisters |= 1 << index;
    this.hasWritten = true;
    this.releaseRegister(index);
    let whole = value;
    if (size === 32) whole = this.fits(value, 32);
    else if (size < 32) {
      const old = asInt(this.readRegister(index, 64));
      const shift = isHighByte ? 8n : 0n;
      const kept = this.and(old, this.int(BigInt.asUintN(64, ~(maskOf(size) << shift))));
      const placed = this.plain("i64.shl", asInt(this.fits(value, size)), this.int(shift));
      whole = nodeOf(this.or(kept, placed));
    }
    this.effect([whole], GENERAL, (c) => c.set(local));
    this.releaseRegister(index);
    if (!isHighByte) this.noteHeld(size === 32 ? whole : value, index, size);
  }
  #place(offset: number): { index: number; isHighByte: boolean } {
    const from = offset - state.gpr;
    if (from < 0 || from >= 128) return this.fail(`no general register at ${offset}`);
    return { index: from >>> 3, isHighByte: (from & 7) === 1 };
  }
  reg(index: number, size: Size): Int {
    return asInt(this.readRegister(index, size));
  }
  setReg(index: number, size: Size, value: Int): void {
    this.#writeRegister(index, size, nodeOf(value));
  }

  // ---- State ----

  state(offset: number, size: Size): Int {
    // What the state block says of the running block is that of the one that the region was entered at
    if (offset === state.blockRip) return asInt(this.#ripNode(BigInt(this.#block.offset), 64));
    if (offset === state.blockStart || offset === state.rip || offset === state.budget) throw new Untranslatable();
    if (offset === state.stackMask) {
      this.frame.usesStackMask = true;
      return this.int(this.frame.stackMask);
    }
    if (offset === segmentOffset(CS) + SEG_LIMIT && this.frame.codeSize !== 64 && this.#isWithinLimit())
      return this.int(0xffff_ffff);
    return asInt(this.#loadState(offset, size));
  }
  /** Outside flat segments relative targets are in the region's range, which is checked where it is entered. */
  #isWithinLimit(): boolean {
    return this.frame.range === undefined || this.variant.access.some(({ kind }) => kind === "relative");
  }
  #loadState(offset: number, size: Size): Node {
    if ((offset >= state.gpr && offset < state.gpr + 128) || isVector(offset)) throw new Untranslatable();
    const reads = isFlagWord(offset) ? FLAGS : OTHER;
    return this.value("i64", NO_ARGUMENTS, (c) => c.loadAt(LOAD64[size], offset), reads, size);
  }
  setState(offset: number, size: Size, value: Int): void {
    // What helpers are passed is nobody else's
    const isPassed = offset >= state.helper && offset < state.helper + 64;
    if (!isPassed) this.hasWritten = true;
    if ((offset >= state.gpr && offset < state.gpr + 128) || isFlagWord(offset) || isVector(offset)) throw new Untranslatable();
    if (offset === state.mxcsr) this.frame.facts.forget("usual");
    this.#storeState(offset, STORE64[size], nodeOf(value));
  }
  #storeState(offset: number, store: string, value: Node): void {
    this.effect([this.constant32(0), value], OTHER, (c) => c.memory(store, offset));
  }

  // ---- Operands ----

  read(operand: FormOperand): Int {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr": {
        const { index, isHighByte } = this.#place(this.#record[access.field]);
        return asInt(this.readRegister(index, access.size, isHighByte));
      }
      case "fixedGpr":
        return this.reg(access.register, access.size);
      case "memory":
        return asInt(this.#loadGuest(this.#linear(operand, access.size, false), integerSize(access.size)));
      case "immediate":
      case "farPointer":
        return this.viewedImmediate(operand);
      case "constant":
        return this.int(access.value);
      case "xmm": {
        const vector = this.#readRegister(this.#vectorPlace(access));
        const low = this.value("i64", [vector], (c) => c.lane("i64x2.extract_lane", 0));
        return this.truncate(asInt(low), integerSize(Math.min(access.size, 64)));
      }
      case "mm":
        return asInt(this.#loadState(this.#record[access.field], integerSize(Math.min(access.size, 64))));
      case "segmentRegister":
      case "controlRegister":
      case "debugRegister":
      case "stackIndex":
        return this.int(this.#record[access.field]);
      case "relative":
        return this.fail("a relative operand has no value");
    }
  }
  readForWrite(operand: FormOperand): Int {
    const access = this.access(operand);
    if (access.kind !== "memory") return this.read(operand);
    const size = integerSize(access.size);
    const place = this.#probe(this.#linear(operand, size, true), size / 8, true);
    this.places = withOperand(this.places, operand.position, place);
    const value = makeResult("i64", size);
    this.effect([place], NOTHING, (c) => c.memory(LOAD64[size], 0), value);
    return asInt(value);
  }
  write(operand: FormOperand, value: Int): void {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr": {
        const { index, isHighByte } = this.#place(this.#record[access.field]);
        this.#writeRegister(index, access.size, nodeOf(value), isHighByte);
        return;
      }
      case "fixedGpr":
        this.setReg(access.register, access.size, value);
        return;
      case "memory": {
        const size = integerSize(access.size);
        const place = this.places[operand.position];
        if (place === undefined) this.#storeGuest(this.#linear(operand, size, true), size, nodeOf(value));
        else this.#storePlace(place, size, nodeOf(value));
        return;
      }
      case "mm":
        this.#writeMmx(this.#record[access.field], nodeOf(value));
        return;
      default:
        this.fail(`cannot write operand ${operand.text}`);
    }
  }
  #writeMmx(offset: number, value: Node): void {
    this.hasWritten = true;
    this.#storeState(offset, "i64.store", value);
    this.#storeState(offset + 8, "i64.store16", this.constant(0xffffn));
  }
  address(operand: FormOperand): Int {
    const known = this.addresses[operand.position];
    if (known !== undefined) return asInt(known);
    if (this.access(operand).kind !== "memory") this.fail(`${operand.text} is no memory operand here`);
    const { base, index, scale, displacement, addressSize } = this.#record;
    let sum = this.int(BigInt.asUintN(64, BigInt(displacement)));
    if (index === state.fourGib) sum = this.#wrapping("i64.add", sum, this.int(1n << 32n));
    else if (index !== state.zero) {
      const scaled = this.#wrapping("i64.shl", this.reg(this.#place(index).index, 64), this.int(scale));
      sum = this.#wrapping("i64.add", scaled, sum);
    }
    if (base === state.blockRip) {
      // Folds with the displacement
      const constant = nodeOf(sum).constant;
      if (constant === undefined) return this.fail("RIP-relative with an index register");
      sum = asInt(this.#ripNode(BigInt.asUintN(64, constant + BigInt(this.#block.offset)), 64));
    } else if (base !== state.zero) sum = this.#wrapping("i64.add", this.reg(this.#place(base).index, 64), sum);
    const node = addressSize === 64 ? nodeOf(sum) : this.mask(nodeOf(sum), maskOf(addressSize as Size));
    this.addresses = withOperand(this.addresses, operand.position, node);
    return asInt(node);
  }
  #wrapping(name: string, a: Int, b: Int): Int {
    return this.plain(name, a, b);
  }
  addressMask(): Int {
    return this.int(maskOf(this.#record.addressSize as Size));
  }
  immediate(): Int {
    return this.int(this.#record.immediate);
  }

  // ---- Vectors ----

  /** Registers that vectors were read from, and what is known of vectors. */
  #sources: Map<Node, number> | undefined;
  #vectorFacts: Map<Node, ReadonlySet<VectorFact>> | undefined;

  override knows(fact: StateFact): boolean {
    if (fact === "sse") {
      // Nothing in a region changes that
      this.frame.usesSse = true;
      return true;
    }
    if (fact === "avx") {
      this.frame.usesAvx = true;
      return true;
    }
    return this.frame.facts.knows(fact);
  }
  override learn(fact: StateFact): void {
    if (this.depth === 0) this.frame.facts.learn(fact);
  }
  override knowsOf(value: Vec, fact: VectorFact): boolean {
    return this.#vectorFacts?.get(nodeOf(value))?.has(fact) ?? false;
  }
  override learnOf(value: Vec, fact: VectorFact): void {
    if (this.depth > 0) return;
    const node = nodeOf(value);
    const facts = withFact(this.#vectorFacts?.get(node) ?? NO_FACTS, fact);
    this.#noteFacts(node, facts);
    const source = this.#sources?.get(node);
    if (source !== undefined) this.frame.facts.setRegister(source, facts);
  }
  #noteFacts(value: Node, facts: ReadonlySet<VectorFact>): void {
    this.#vectorFacts ??= new Map();
    this.#vectorFacts.set(value, facts);
  }
  #vectorPlace(access: { readonly field: "a" | "b" | "c" | "immediate" }): number {
    return Number(this.#record[access.field]);
  }
  #readRegister(offset: number): Node {
    const index = VectorRegisters.indexOf(offset);
    const local = this.frame.vectors.local(index, false);
    const node = this.value("v128", NO_ARGUMENTS, (c) => c.get(local), VECTOR);
    this.#sources ??= new Map();
    this.#sources.set(node, index);
    this.#noteFacts(node, this.frame.facts.ofRegister(index));
    return node;
  }
  #writeRegisterVector(offset: number, value: Node): void {
    const index = VectorRegisters.indexOf(offset);
    const local = this.frame.vectors.local(index, true);
    this.hasWritten = true;
    this.effect([value], VECTOR, (c) => c.set(local));
    this.#sources = undefined;
    this.frame.facts.setRegister(index, this.depth === 0 ? (this.#vectorFacts?.get(value) ?? NO_FACTS) : NO_FACTS);
  }

  protected readPair(operand: FormOperand): readonly [Vec, Vec] {
    const access = this.access(operand);
    if (access.kind === "xmm") {
      const place = this.#vectorPlace(access);
      return [asVec(this.#readRegister(place)), asVec(this.#readRegister(place + UPPER_HALF))];
    }
    const place = this.#probe(this.#linear(operand, 256, false), 32, false);
    const part = (offset: number): Vec => {
      const value = makeResult("v128");
      this.effect([place], NOTHING, (c) => c.memory("v128.load", offset), value);
      return asVec(value);
    };
    return [part(0), part(16)];
  }
  writeHalves(operand: FormOperand, low: Vec, high: Vec): void {
    const access = this.access(operand);
    if (access.kind === "xmm") {
      const place = this.#vectorPlace(access);
      this.#writeRegisterVector(place + UPPER_HALF, nodeOf(high));
      this.#writeRegisterVector(place, nodeOf(low));
      return;
    }
    this.#storeThrough(this.#linear(operand, 256, true), [nodeOf(low), nodeOf(high)], 32, "v128.store");
  }
  zeroVectors(which: "upper" | "all"): void {
    this.hasWritten = true;
    const registers = Array.from({ length: this.frame.codeSize === 64 ? 16 : 8 }, (_, i) => i);
    const halves = registers.flatMap((index) => (which === "all" ? [index, index + UPPER_HALVES] : [index + UPPER_HALVES]));
    this.effect(NO_ARGUMENTS, VECTOR, (c) => {
      for (const index of halves) this.frame.vectors.zero(c, index);
    });
    this.#sources = undefined;
    for (const index of halves) this.frame.facts.setRegister(index, NO_FACTS);
  }
  fusedMultiplyAdd(bits: 32 | 64, lanes: number, a: Vec, b: Vec, c: Vec): Vec {
    const { support } = this.frame;
    const kind = [bits === 64 ? 1 : 0, lanes].map((value) => this.constant32(value));
    const args = [...kind, ...[a, b, c].map(nodeOf)];
    return asVec(this.value("v128", args, (code) => code.call(support.fusedMultiplyAdd), OTHER));
  }

  protected readVector(operand: FormOperand): Vec {
    const access = this.access(operand);
    switch (access.kind) {
      case "xmm":
        return asVec(this.#readRegister(this.#vectorPlace(access)));
      case "mm": {
        const offset = this.#record[access.field];
        return asVec(this.value("v128", NO_ARGUMENTS, (c) => c.loadAt("v128.load64_zero", offset), OTHER));
      }
      case "memory": {
        const load = VECTOR_LOADS[access.size];
        if (load === undefined) return this.fail(`no vector of ${access.size} bits`);
        const place = this.#probe(this.#linear(operand, access.size, false), access.size / 8, false);
        const value = makeResult("v128");
        this.effect([place], NOTHING, (c) => c.memory(load, 0), value);
        return asVec(value);
      }
      default:
        return this.fail(`${operand.text} is no vector`);
    }
  }
  protected writeVector(operand: FormOperand, value: Vec): void {
    const access = this.access(operand);
    const lane = (): Node => this.value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0));
    switch (access.kind) {
      case "xmm":
        this.#writeRegisterVector(this.#vectorPlace(access), nodeOf(value));
        return;
      case "mm":
        this.#writeMmx(this.#record[access.field], lane());
        return;
      case "memory":
        if (access.size === 128) this.#storeVector(this.#linear(operand, 128, true), nodeOf(value));
        else this.#storeLow(this.#linear(operand, access.size, true), access.size === 32 ? 32 : 64, nodeOf(value));
        return;
      default:
        this.fail(`${operand.text} is no vector`);
    }
  }
  protected checkAlignment(operand: FormOperand, bytes: number): void {
    // Whether the limit is passed makes no difference: both are the interpreter's
    const { node } = this.#linear(operand, 8, false);
    this.raiseIf(this.ne(asInt(this.mask(node, BigInt(bytes - 1))), this.int(0)), "#GP", 0);
  }

  // ---- Guest memory ----

  load(segment: number, offset: Int, size: Size): Int {
    return asInt(this.#loadGuest(this.#linearOf(segment, offset, size, false), size));
  }
  store(segment: number, offset: Int, size: Size, value: Int): void {
    this.#storeGuest(this.#linearOf(segment, offset, size, true), size, nodeOf(value));
  }
  loadDefault(offset: Int, size: Size): Int {
    return asInt(this.#loadGuest(this.#linearIn(this.#record.segment, offset, size, false), size));
  }
  storeDefault(offset: Int, size: Size, value: Int): void {
    this.#storeGuest(this.#linearIn(this.#record.segment, offset, size, true), size, nodeOf(value));
  }
  probeStoreDefault(offset: Int, size: Size): void {
    this.#probeOnly(this.#linearIn(this.#record.segment, offset, size, true), size);
  }
  probeStore(segment: number, offset: Int, size: Size): void {
    this.#probeOnly(this.#linearOf(segment, offset, size, true), size);
  }
  #probeOnly(linear: Linear, size: Size): void {
    this.effect([this.#probe(linear, size / 8, true)], NOTHING, (c) => c.op("drop"));
  }
  #linear(operand: FormOperand, bits: number, isWrite: boolean): Linear {
    const { segment, base, index, displacement } = this.#record;
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
      this.#leaves();
      const { flags } = this;
      const node = makeResult("i64");
      const access = { slot, bytes: bits / 8, isWrite };
      const emit = (c: Code, scope: Scope): void => emitSegmentedLinear(c, scope, access, () => this.#leave(c, flags));
      this.effect([nodeOf(offset)], NOTHING, emit, node);
      return { node, key: key && (key === STACK ? key : `${slot}:${key}`) };
    }
    return { node: nodeOf(this.#wrapping("i64.add", offset, this.state(slot + SEG_EFFECTIVE_BASE, 64))), key: `${slot}` };
  }
  /** Of accesses to the stack reads too go by the permission to write, since one place serves both. */
  #placeKey(key: string | undefined, bytes: number, isWrite: boolean): string | undefined {
    if (key === undefined || bytes > LARGEST_CACHED || (bytes & (bytes - 1)) !== 0) return undefined;
    const name = key === STACK ? key : `${key}${isWrite ? "w" : "r"}`;
    this.#placeKeys.push(name);
    return name;
  }
  /** Pushes what a miss function takes, after the linear address, and calls it. */
  #callMiss(c: Code, miss: number, bytes: number): void {
    const { gpr, budget, layout } = this.frame;
    c.i32(bytes);
    layout.header(c, this.#block);
    layout.operation(c, this.#block, this.#record.at);
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
  #probe({ node, key }: Linear, bytes: number, isWrite: boolean): Node {
    this.#leaves();
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
        c.set(address);
        const known = name === undefined ? undefined : places.find(name);
        if (known === undefined) {
          emitMatch(c, address, entry, isWrite, undefined, bytes);
          c.op("i32.eqz").ifUnlikely("i32");
          c.get(address);
          this.#callMiss(c, miss, bytes);
          c.tee(entry).op("i32.eqz");
          this.#bail(c, flags);
          c.get(entry).else();
          emitPlace(c, address, entry);
          c.end();
        } else {
          emitElsewhere(c, address, known, bytes);
          emitMatch(c, address, entry, isWrite, undefined, bytes);
          c.op("i32.eqz").ifUnlikely();
          c.get(address);
          this.#callMiss(c, miss, bytes);
          c.tee(entry).op("i32.eqz");
          this.#bail(c, flags);
          c.i32(0).get(entry).get(address).op("i32.wrap_i64").op("i32.sub").memory("i32.store", known.addend);
          c.i32(0).i64(NO_PAGE).memory("i64.store", known.page);
          c.else();
          emitRemember(c, address, entry, known, !isWrite && key === STACK);
          c.end().end();
          c.get(address).op("i32.wrap_i64").loadAt("i32.load", known.addend).op("i32.add");
        }
        scope.release("i64", address);
        scope.release("i32", entry);
      },
      place,
    );
    return place;
  }
  #loadGuest(linear: Linear, size: Size): Node {
    const place = this.#probe(linear, size / 8, false);
    const value = makeResult("i64", size);
    this.effect([place], NOTHING, (c) => c.memory(LOAD64[size], 0), value);
    return value;
  }
  #storeGuest(linear: Linear, size: Size, value: Node): void {
    this.#storeThrough(linear, [value], size / 8, STORE64[size]);
  }
  #storeVector(linear: Linear, value: Node): void {
    this.#storeThrough(linear, [value], 16, "v128.store");
  }
  /** The low 32 or 64 bits, without a way through a general register. */
  #storeLow(linear: Linear, bits: 32 | 64, vector: Node): void {
    const shape = bits === 32 ? "f32x4" : "f64x2";
    const low = this.value(`f${bits}`, [vector], (c) => c.lane(`${shape}.extract_lane`, 0));
    this.#storeThrough(linear, [low], bits / 8, `f${bits}.store`);
  }
  /** `values`, one behind the other, with nothing in between. */
  #storeThrough({ node, key }: Linear, values: readonly Node[], bytes: number, store: string): void {
    this.#leaves();
    this.hasWritten = true;
    const { support, places } = this.frame;
    const { flags } = this;
    const name = this.#placeKey(key, bytes, true);
    this.effect([node, ...values], NOTHING, (c: Code, scope: Scope) => {
      const held = values.map(({ type }) => scope.temporary(type));
      const address = scope.temporary("i64");
      const entry = scope.temporary("i32");
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
        emitMatch(c, address, entry, true, undefined, bytes);
        c.op("i32.eqz").ifUnlikely();
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
        emitMatch(c, address, entry, true, undefined, bytes);
        c.op("i32.eqz").ifUnlikely();
        storeInMiss();
        c.br(done).end();
        emitRemember(c, address, entry, known, false);
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
    });
  }
  #storePlace(place: Node, size: Size, value: Node): void {
    this.hasWritten = true;
    this.effect([place, value], NOTHING, (c) => c.memory(STORE64[size], 0));
  }

  mayBeRounded(operation: number, bits: 32 | 64, lanes: number, a: Vec, b: Vec, result: Vec): Bool {
    const { support } = this.frame;
    const kind = [operation, bits === 64 ? 1 : 0, lanes].map((value) => this.constant32(value));
    return asBool(this.value("i32", [...kind, ...[a, b, result].map(nodeOf)], (c) => c.call(support.mayBeRounded)));
  }

  // ---- Control ----

  /** RIP at a distance from the start of the page. */
  #ripNode(distance: bigint, size: number): Node {
    const { base } = this.frame;
    const node = this.value("i64", NO_ARGUMENTS, (c) => c.get(base).i64(distance).op("i64.add"));
    return size === 64 ? node : this.mask(node, maskOf(size as Size));
  }
  nextRip(): Int {
    const { ripOffset, length } = this.#record;
    return asInt(this.#ripNode(BigInt(this.#block.offset + ripOffset + length), this.frame.codeSize));
  }
  #ends(terminator: Terminator): void {
    if (this.depth > 0 || this.#terminator !== undefined) throw new Untranslatable();
    this.#terminator = terminator;
  }
  #relativeTarget(): number {
    // With a smaller operand size RIP is cut to 16 bits
    if (this.size < this.frame.codeSize) throw new Untranslatable();
    const { range } = this.frame;
    const target = this.#block.offset + Number(BigInt.asIntN(64, this.#record.immediate));
    if (range !== undefined && !isInRange(range, target)) throw new Untranslatable();
    return target;
  }
  jump(target: Int): void {
    this.#ends({ kind: "indirect" });
    this.effect([nodeOf(target)], NOTHING, (c) => c.set(this.frame.rip));
  }
  jumpRelative(): void {
    this.#ends({ kind: "jump", target: this.#relativeTarget() });
  }
  branchRelative(condition: Bool): void {
    const { ripOffset, length } = this.#record;
    this.#ends({ kind: "branch", taken: this.#relativeTarget(), next: this.#block.offset + ripOffset + length });
    this.effect([nodeOf(condition)], NOTHING, (c) => c.set(this.frame.condition));
  }
}

/** The block of an operation: its header, and its distance from the start of the page. */
type OperationBlock = Pick<RegionBlock, "header" | "offset">;

/** A linear address, and what it has in common with others, see `#linearIn`. */
interface Linear {
  readonly node: Node;
  readonly key: string | undefined;
}
const STACK = "stack";
/** Rows name the segment of pushes and pops. */
const keyOfSegment = (segment: number): string | undefined => (segment === SS ? STACK : undefined);

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
function emitRemember(c: Code, address: number, entry: number, { page, addend }: Place, needsWrite: boolean): void {
  c.i32(0)
    .get(entry)
    .memory("i32.load", TLB + TLB_ADDEND)
    .memory("i32.store", addend);
  c.i32(0).get(address).i64(-4096).op("i64.and");
  if (needsWrite) {
    c.i64(NO_PAGE);
    c.get(entry).memory("i64.load", TLB + TLB_READ_TAG);
    c.get(entry).memory("i64.load", TLB + TLB_WRITE_TAG);
    c.op("i64.eq").op("select");
  }
  c.memory("i64.store", page);
}

/** From a register's lower half to its upper one, in bytes. */
const UPPER_HALF = state.ymmHigh - state.xmm;
const VECTOR_LOADS: Readonly<Record<number, string>> = { 32: "v128.load32_zero", 64: "v128.load64_zero", 128: "v128.load" };

function isFlagWord(offset: number): boolean {
  return offset >= state.flagResult && offset < state.flagAux + 4;
}
function isVector(offset: number): boolean {
  return offset >= state.xmm && offset < state.ymmHigh + 256;
}
