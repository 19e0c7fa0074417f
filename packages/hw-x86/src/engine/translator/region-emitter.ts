/**
 * The emitter of translated regions: one operation, its operands known. General registers are locals that live as long as the
 * region runs, flags are described in flag-kinds.ts. What is rare (a fault, a helper) leaves for the interpreter, which runs the
 * operation from its beginning; so nothing that such a thing may still follow is written before it.
 */
import { CS, SEG_LIMIT, segmentOffset, state } from "../cpu-state.ts";
import type { Bool, Doubt, Emitter, Int, Size, Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import {
  FLAGS,
  GENERAL,
  makeResult,
  NO_ARGUMENTS,
  NOTHING,
  type Node,
  OTHER,
  type Statement,
} from "../interpreter/schedule.ts";
import { withOperand } from "../node-emitter.ts";
import { asBool, asInt, constant32, integerSize, LOAD64, maskOf, nodeOf, STORE64 } from "../node-values.ts";
import { isInRange } from "./code-range.ts";
import type { GeneralFact } from "./facts.ts";
import type { FlagState } from "./flag-state.ts";
import { type OperationRecord, type RegionFrame, Untranslatable } from "./region.ts";
import type { OperationBlock } from "./region-memory.ts";
import { RegionVectors } from "./region-vectors.ts";

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

export class RegionEmitter extends RegionVectors implements Emitter {
  readonly #loopDepth: number;
  #terminator: Terminator | undefined;
  /** Nodes of which the low bits, so many, are all like one, an i32 node, and the others zero. */
  readonly #spread = new Map<Node, { readonly size: Size; readonly bit: Node }>();

  constructor(frame: RegionFrame, record: OperationRecord, block: OperationBlock, loopDepth: number, flags: FlagState) {
    super(frame, record, block, flags);
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
      mayLeave: this.mayLeave,
      terminator: this.#terminator,
      places: this.placeKeys,
      loopDepth: this.#loopDepth,
      flags: this.flags,
    };
  }

  // ---- Leaving ----

  raise(): void {
    this.leaves();
    if (this.depth === 0) throw new Untranslatable();
    const { flags } = this;
    this.effect(NO_ARGUMENTS, NOTHING, (c) => this.leave(c, flags));
  }
  helper(): Bool {
    this.leaves();
    if (this.depth === 0) throw new Untranslatable();
    const result = makeResult("i32");
    const { flags } = this;
    // What follows is never reached, and so has any type
    this.effect(NO_ARGUMENTS, NOTHING, (c) => this.leave(c, flags), result);
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
    this.leaves();
    const { support } = this.frame;
    const run = kind === "move" ? support.moveRun : support.storeRun;
    const done = this.runNode(kind, run, (c) => this.frame.layout.operation(c, this.block, this.record.at));
    const { flags } = this;
    this.effect([nodeOf(done)], NOTHING, (c) => {
      c.op("i32.eqz").ifUnlikely();
      this.leave(c, flags);
      c.end();
    });
    this.finishRun(kind);
  }
  override loopWhile(): void {
    throw new Untranslatable();
  }

  /** What is doubtful is the interpreter's. */
  override unless<V extends Int | Vec>(doubts: readonly Doubt[], fast: V): V {
    this.leaves();
    const { flags } = this;
    for (const doubt of doubts) this.ifAll(doubt, () => this.effect(NO_ARGUMENTS, NOTHING, (c) => this.leave(c, flags)));
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

  // ---- Arithmetic ----

  /**
   * What makes a mask of a bit, and keeps by it: a chain of three instructions, each waiting for the one before, which compilers emit for
   * "this if the bit is set, else zero". As a selection by the bit it waits for one.
   */
  override sub(a: Int, b: Int, size?: Size): Int {
    const difference = super.sub(a, b, size);
    const bit = nodeOf(b);
    if (nodeOf(a).constant === 0n && bit.constant === undefined && bit.bits === 1)
      this.#spread.set(nodeOf(difference), { size: size ?? this.size, bit: this.low(b) });
    return difference;
  }
  override and(a: Int, b: Int): Int {
    return this.#selected(a, b) ?? this.#selected(b, a) ?? super.and(a, b);
  }
  #selected(mask: Int, kept: Int): Int | undefined {
    const spread = this.#spread.get(nodeOf(mask));
    const { bits } = nodeOf(kept);
    if (spread === undefined || bits > spread.size) return undefined;
    if (bits > 32) return this.select(asBool(spread.bit), kept, this.int(0));
    const low = this.value("i32", [this.low(kept), constant32(0), spread.bit], (c) => c.op("select"));
    return asInt(this.operation("i64.extend_i32_u", [low], bits));
  }

  // ---- Registers ----

  #local(index: number): number {
    this.frame.usedRegisters |= 1 << index;
    return this.frame.gpr[index] as number;
  }
  protected readRegister(index: number, size: Size, isHighByte = false): Node {
    const local = this.#local(index);
    const { bits, spread } = this.frame.facts.ofGeneral(index);
    const whole = this.value("i64", NO_ARGUMENTS, (c) => c.get(local), GENERAL, bits);
    if (spread !== undefined) {
      const bit = this.value("i32", NO_ARGUMENTS, (c) => c.get(spread.bit), GENERAL);
      this.#spread.set(whole, { size: spread.size, bit });
    }
    if (isHighByte) return nodeOf(this.and(this.shr(asInt(whole), this.int(8)), this.int(255)));
    const value = this.fits(whole, size);
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
      const placed = this.plain("i64.shl", asInt(this.fits(value, size)), this.int(shift), size + Number(shift));
      whole = nodeOf(this.or(kept, placed));
    }
    const fact = this.#factOf(whole, index);
    this.effect([whole], GENERAL, (c) => c.set(local));
    this.frame.facts.setGeneral(index, fact);
    this.releaseRegister(index);
    if (!isHighByte) this.noteHeld(size === 32 ? whole : value, index, size);
  }
  /** What is known of a register once it has this value. What happens on one path only is not known behind it. */
  #factOf(whole: Node, index: number): GeneralFact | undefined {
    if (this.depth > 0) return undefined;
    const spread = this.#spread.get(whole);
    if (spread === undefined) return { bits: whole.bits, spread: undefined };
    const { fn, spreadBits } = this.frame;
    spreadBits[index] ??= fn.allocate("i32");
    const bit = spreadBits[index];
    this.effect([spread.bit], GENERAL, (c) => c.set(bit));
    return { bits: whole.bits, spread: { size: spread.size, bit } };
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
    if (offset === state.blockRip) return asInt(this.#ripNode(BigInt(this.block.offset), 64));
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
    this.storeState(offset, STORE64[size], nodeOf(value));
  }
  // ---- Operands ----

  read(operand: FormOperand): Int {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr": {
        const { index, isHighByte } = this.#place(this.record[access.field]);
        return asInt(this.readRegister(index, access.size, isHighByte));
      }
      case "fixedGpr":
        return this.reg(access.register, access.size);
      case "memory":
        return asInt(this.loadGuest(this.linear(operand, access.size, false), integerSize(access.size)));
      case "immediate":
      case "farPointer":
        return this.viewedImmediate(operand);
      case "constant":
        return this.int(access.value);
      case "xmm": {
        const vector = this.vectorRegister(this.vectorPlace(access));
        const low = this.value("i64", [vector], (c) => c.lane("i64x2.extract_lane", 0));
        return this.truncate(asInt(low), integerSize(Math.min(access.size, 64)));
      }
      case "mm":
        return asInt(this.#loadState(this.record[access.field], integerSize(Math.min(access.size, 64))));
      case "segmentRegister":
      case "controlRegister":
      case "debugRegister":
      case "stackIndex":
        return this.int(this.record[access.field]);
      case "relative":
        return this.fail("a relative operand has no value");
    }
  }
  readForWrite(operand: FormOperand): Int {
    const access = this.access(operand);
    if (access.kind !== "memory") return this.read(operand);
    const size = integerSize(access.size);
    const place = this.probe(this.linear(operand, size, true), size / 8, true);
    this.places = withOperand(this.places, operand.position, place);
    const value = makeResult("i64", size);
    this.effect([place], NOTHING, (c) => c.memory(LOAD64[size], 0), value);
    return asInt(value);
  }
  write(operand: FormOperand, value: Int): void {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr": {
        const { index, isHighByte } = this.#place(this.record[access.field]);
        this.#writeRegister(index, access.size, nodeOf(value), isHighByte);
        return;
      }
      case "fixedGpr":
        this.setReg(access.register, access.size, value);
        return;
      case "memory": {
        const size = integerSize(access.size);
        const place = this.places[operand.position];
        if (place === undefined) this.storeGuest(this.linear(operand, size, true), size, nodeOf(value));
        else this.storePlace(place, size, nodeOf(value));
        return;
      }
      case "mm":
        this.writeMmx(this.record[access.field], nodeOf(value));
        return;
      default:
        this.fail(`cannot write operand ${operand.text}`);
    }
  }
  address(operand: FormOperand): Int {
    const known = this.addresses[operand.position];
    if (known !== undefined) return asInt(known);
    if (this.access(operand).kind !== "memory") this.fail(`${operand.text} is no memory operand here`);
    const { base, index, scale, displacement, addressSize } = this.record;
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
      sum = asInt(this.#ripNode(BigInt.asUintN(64, constant + BigInt(this.block.offset)), 64));
    } else if (base !== state.zero) sum = this.#wrapping("i64.add", this.reg(this.#place(base).index, 64), sum);
    const node = addressSize === 64 ? nodeOf(sum) : this.mask(nodeOf(sum), maskOf(addressSize as Size));
    this.addresses = withOperand(this.addresses, operand.position, node);
    return asInt(node);
  }
  #wrapping(name: string, a: Int, b: Int): Int {
    return this.plain(name, a, b);
  }
  addressMask(): Int {
    return this.int(maskOf(this.record.addressSize as Size));
  }
  immediate(): Int {
    return this.int(this.record.immediate);
  }

  mayBeRounded(operation: number, bits: 32 | 64, lanes: number, a: Vec, b: Vec, result: Vec): Bool {
    const { support } = this.frame;
    const kind = [operation, bits === 64 ? 1 : 0, lanes].map((value) => constant32(value));
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
    const { ripOffset, length } = this.record;
    return asInt(this.#ripNode(BigInt(this.block.offset + ripOffset + length), this.frame.codeSize));
  }
  #ends(terminator: Terminator): void {
    if (this.depth > 0 || this.#terminator !== undefined) throw new Untranslatable();
    this.#terminator = terminator;
  }
  #relativeTarget(): number {
    // With a smaller operand size RIP is cut to 16 bits
    if (this.size < this.frame.codeSize) throw new Untranslatable();
    const { range } = this.frame;
    const target = this.block.offset + Number(BigInt.asIntN(64, this.record.immediate));
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
    const { ripOffset, length } = this.record;
    this.#ends({ kind: "branch", taken: this.#relativeTarget(), next: this.block.offset + ripOffset + length });
    this.effect([nodeOf(condition)], NOTHING, (c) => c.set(this.frame.condition));
  }
}

function isFlagWord(offset: number): boolean {
  return offset >= state.flagResult && offset < state.flagAux + 4;
}
function isVector(offset: number): boolean {
  return offset >= state.xmm && offset < state.ymmHigh + 256;
}
