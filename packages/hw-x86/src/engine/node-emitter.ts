/**
 * The part of an emitter that does not depend on where operands lie: values as expression nodes, arithmetic on them, branches, and
 * the checks that rows ask for. The interpreter's emitter finds operands at run time, the translator's knows them.
 */
import { RAX, RCX, RDI, RSI, state } from "./cpu-state.ts";
import type { OperandAccess, Variant } from "./decoder/variant.ts";
import type { Bool, ConditionCode, Doubt, Emitter, FlagName, Int, Size, Value, Variable, Vec } from "./emitter.ts";
import type { FormOperand, Requirement } from "./instruction.ts";
import {
  EVERYTHING,
  makeNode,
  makeResult,
  NO_ARGUMENTS,
  NOTHING,
  type Node,
  type Scope,
  type Statement,
  VARIABLES,
  type VariableSlot,
} from "./interpreter/schedule.ts";
import { NARROWED, type NodeMaker, narrow } from "./narrowing.ts";
import { simplify } from "./simplification.ts";
import type { StateFact, VectorFact } from "./translator/facts.ts";
import type { Code } from "./wasm/code.ts";
import { resultType, type ValueType } from "./wasm/opcodes.ts";

const CR0_EM = 4,
  CR0_MP = 2,
  CR0_TS = 8,
  CR4_OSFXSR = 0x200,
  CR4_OSXSAVE = 0x4_0000;
const CR0_PE = 1,
  /** RFLAGS. */
  VM = 0x2_0000,
  /** XCR0: SSE and AVX. */
  XCR0_AVX = 6;

// Handles are nodes; the types of emitter.ts keep rows from mixing them up.
export const asInt = (node: Node): Int => node as unknown as Int;
export const asBool = (node: Node): Bool => node as unknown as Bool;
export const asVec = (node: Node): Vec => node as unknown as Vec;
export const nodeOf = (value: Value): Node => value as unknown as Node;

export const LOAD64: Readonly<Record<Size, string>> = {
  8: "i64.load8_u",
  16: "i64.load16_u",
  32: "i64.load32_u",
  64: "i64.load",
};
export const STORE64: Readonly<Record<Size, string>> = {
  8: "i64.store8",
  16: "i64.store16",
  32: "i64.store32",
  64: "i64.store",
};
const MASKS: Readonly<Record<Size, bigint>> = { 8: 0xffn, 16: 0xffffn, 32: 0xffff_ffffn, 64: 0xffff_ffff_ffff_ffffn };
export const maskOf = (size: Size): bigint => MASKS[size];

const i64Constant = (value: bigint, bits: number): Node =>
  makeNode("i64", NO_ARGUMENTS, (c) => c.i64(value), NOTHING, bits, value);
const i32Constant = (value: number): Node => makeNode("i32", NO_ARGUMENTS, (c) => c.i32(value), NOTHING, 64, BigInt(value));
/** Nodes of constants have no place where they are computed, so that one serves all: of those that nearly everything uses. */
const SMALL_I64 = Array.from({ length: 256 }, (_, value) => i64Constant(BigInt(value), bitLength(BigInt(value))));
const SMALL_I32 = Array.from({ length: 256 }, (_, value) => i32Constant(value));
const MASK_I64 = new Map([16, 32, 64].map((size) => [MASKS[size as Size], i64Constant(MASKS[size as Size], size)]));

/** Bits up to the highest that is set, of an unsigned number of 64 bits; 1 for zero. */
function bitLength(value: bigint): number {
  const high = Number(value >> 32n);
  return high !== 0 ? 64 - Math.clz32(high) : Math.max(1, 32 - Math.clz32(Number(value & 0xffff_ffffn)));
}

export function integerSize(bits: number): Size {
  if (bits === 8 || bits === 16 || bits === 32 || bits === 64) return bits;
  throw new Error(`no integer of ${bits} bits`);
}

type ByOperand<T> = readonly (T | undefined)[];
export function withOperand<T>(all: ByOperand<T>, position: number, value: T): ByOperand<T> {
  const changed = [...all];
  changed[position] = value;
  return changed;
}

/** How two numbers compare, as WebAssembly calls it. */
export type Relation = "eq" | "lt_u" | "le_u" | "lt_s" | "le_s";

/** What an emitter adds to this class to be an `Emitter`. */
type Rest =
  | "read"
  | "readForWrite"
  | "write"
  | "address"
  | "zeroVectors"
  | "reg"
  | "setReg"
  | "load"
  | "store"
  | "loadDefault"
  | "storeDefault"
  | "probeStoreDefault"
  | "probeStore"
  | "addressMask"
  | "state"
  | "setState"
  | "recordFlags"
  | "recordShiftFlags"
  | "flag"
  | "setFlag"
  | "readFlags"
  | "writeArithmeticFlags"
  | "recordComparison"
  | "mayBeRounded"
  | "fusedMultiplyAdd"
  | "jump"
  | "jumpRelative"
  | "branchRelative"
  | "nextRip"
  | "repeat"
  | "stringRun"
  | "endBlock"
  | "raise"
  | "helper"
  | "helperThenEndBlock";

export abstract class NodeEmitter implements Omit<Emitter, Rest> {
  readonly size: Size;
  protected readonly variant: Variant;
  protected statements: Statement[] = [];
  // By operand position; replaced and never changed, so that the end of a branch goes back to what was there before it
  /** Effective addresses of memory operands. */
  protected addresses: ByOperand<Node> = [];
  /** Bank offsets that `readForWrite` found. */
  protected places: ByOperand<Node> = [];

  constructor(variant: Variant) {
    this.variant = variant;
    this.size = variant.size;
  }

  abstract reg(index: number, size: Size): Int;
  abstract setReg(index: number, size: Size, value: Int): void;
  abstract state(offset: number, size: Size): Int;
  abstract flag(name: FlagName): Bool;
  /** SF differs from OF. */
  protected abstract lessThan(): Bool;
  abstract raise(vector: Parameters<Emitter["raise"]>[0], error?: number): void;

  // ---- What is known (translator/facts.ts); the interpreter asks each time ----

  knows(_fact: StateFact): boolean {
    return false;
  }
  learn(_fact: StateFact): void {}
  knowsOf(_value: Vec, _fact: VectorFact): boolean {
    return false;
  }
  learnOf(_value: Vec, _fact: VectorFact): void {}

  valueOf(integer: Int): bigint | undefined {
    return nodeOf(integer).constant;
  }
  unless<V extends Int | Vec>(doubts: readonly Doubt[], fast: V, exact: () => V): V {
    const type = nodeOf(fast).type;
    const result = this.variable(type as "i64", fast as Int) as unknown as Variable<V>;
    const simple = doubts.filter((doubt) => doubt.length === 1).map(([condition]) => condition());
    const isDoubtful = this.variable(
      "i32",
      simple.reduce((a, b) => this.or1(a, b), this.bool(false)),
    );
    for (const doubt of doubts) {
      if (doubt.length > 1) this.ifAll(doubt, () => isDoubtful.set(this.bool(true)));
    }
    this.if(isDoubtful.get(), () => result.set(exact()));
    return result.get();
  }
  /** `body`, where all conditions hold. */
  protected ifAll([first, ...others]: readonly (() => Bool)[], body: () => void): void {
    if (first === undefined) body();
    else this.seldom(first(), () => this.ifAll(others, body));
  }

  // ---- Building blocks ----

  protected value(
    type: ValueType,
    args: readonly Node[],
    emit: ((code: Code) => void) | undefined,
    reads = NOTHING,
    bits = 64,
    name?: string,
  ): Node {
    const node = makeNode(type, args, emit, reads, bits, undefined, name);
    this.statements.push(node);
    return node;
  }
  protected operation(name: string, args: readonly Node[], bits = 64): Node {
    const simpler = simplify(name, args);
    if (simpler !== undefined) {
      if (typeof simpler !== "bigint") return simpler;
      return resultType(name) === "i64" ? this.constant(simpler) : this.constant32(Number(simpler));
    }
    return this.value(resultType(name), args, undefined, NOTHING, bits, name);
  }
  protected effect(args: readonly Node[], writes: number, emit: (code: Code, scope: Scope) => void, result?: Node): void {
    this.statements.push({ kind: "effect", args, writes, result, emit });
  }
  protected constant(value: bigint): Node {
    if (value >= 0n && value < 256n) return SMALL_I64[Number(value)] as Node;
    const wrapped = BigInt.asUintN(64, value);
    return MASK_I64.get(wrapped) ?? i64Constant(wrapped, bitLength(wrapped));
  }
  protected constant32(value: number): Node {
    return SMALL_I32[value] ?? i32Constant(value);
  }
  protected access(operand: FormOperand): OperandAccess {
    const access = this.variant.access[operand.position];
    if (access === undefined) throw new Error(`${this.variant.name}: no operand ${operand.position}`);
    return access;
  }
  protected fits(node: Node, size: Size): Node {
    return node.bits <= size ? node : this.mask(node, maskOf(size));
  }
  protected mask(node: Node, mask: bigint): Node {
    if (node.constant !== undefined) return this.constant(node.constant & mask);
    if (mask === 0xffff_ffffn && node.name !== undefined && node.name in NARROWED) {
      return this.operation("i64.extend_i32_u", [narrow(this.#maker, node)], 32);
    }
    return this.operation("i64.and", [node, this.constant(mask)], Math.min(node.bits, bitLength(mask)));
  }
  #nodeMaker: NodeMaker | undefined;
  get #maker(): NodeMaker {
    this.#nodeMaker ??= {
      constant32: (value) => this.constant32(value),
      operation: (name, args, bits) => this.operation(name, args, bits),
    };
    return this.#nodeMaker;
  }
  protected fail(what: string): never {
    throw new Error(`${this.variant.name}: ${what}`);
  }

  // ---- Constants and variables ----

  int(value: number | bigint): Int {
    const small = typeof value === "number" ? SMALL_I64[value] : undefined;
    return asInt(small ?? this.constant(BigInt(value)));
  }
  bool(value: boolean): Bool {
    return asBool(this.constant32(value ? 1 : 0));
  }
  variable(type: "i64", initial: Int): Variable<Int>;
  variable(type: "i32", initial: Bool): Variable<Bool>;
  variable(type: "v128", initial: Vec): Variable<Vec>;
  variable<V extends Value>(type: ValueType, initial: V): Variable<V> {
    const slot: VariableSlot = { type, local: -1 };
    this.statements.push({ kind: "declare", variable: slot, initial: nodeOf(initial) });
    return {
      get: () => this.value(type, NO_ARGUMENTS, (c) => c.get(slot.local), VARIABLES) as unknown as V,
      set: (value) => {
        this.statements.push({ kind: "assign", variable: slot, value: nodeOf(value) });
      },
    };
  }

  sizeOf(operand: FormOperand): number {
    const access = this.access(operand);
    return "size" in access ? access.size : 64;
  }
  isMemory(operand: FormOperand): boolean {
    return this.access(operand).kind === "memory";
  }
  // ---- Integer arithmetic ----

  protected sized(name: string, a: Int, b: Int, size: Size | undefined): Int {
    const node = this.operation(name, [nodeOf(a), nodeOf(b)]);
    return asInt(this.fits(node, size ?? this.size));
  }
  protected plain(name: string, a: Int, b: Int, bits = 64): Int {
    return asInt(this.operation(name, [nodeOf(a), nodeOf(b)], bits));
  }
  protected widest(a: Int, b: Int): number {
    return Math.max(nodeOf(a).bits, nodeOf(b).bits);
  }
  add(a: Int, b: Int, size?: Size): Int {
    return this.sized("i64.add", a, b, size);
  }
  sub(a: Int, b: Int, size?: Size): Int {
    return this.sized("i64.sub", a, b, size);
  }
  mul(a: Int, b: Int, size?: Size): Int {
    return this.sized("i64.mul", a, b, size);
  }
  mulHigh(a: Int, b: Int, signed: boolean): Int {
    // Schoolbook on 32-bit halves (unsigned); the signed product differs by a multiple of each operand.
    const mask = this.int(0xffff_ffffn);
    const half = this.int(32);
    const [al, ah, bl, bh] = [this.and(a, mask), this.shr(a, half), this.and(b, mask), this.shr(b, half)];
    const low = this.plain("i64.mul", al, bl);
    const middle = this.plain("i64.add", this.plain("i64.mul", ah, bl), this.shr(low, half));
    const other = this.plain("i64.add", this.plain("i64.mul", al, bh), this.and(middle, mask));
    const high = this.plain(
      "i64.add",
      this.plain("i64.add", this.plain("i64.mul", ah, bh), this.shr(middle, half)),
      this.shr(other, half),
    );
    if (!signed) return high;
    const top = this.int(63);
    const corrected = this.plain("i64.sub", high, this.and(this.plain("i64.shr_s", a, top), b));
    return this.plain("i64.sub", corrected, this.and(this.plain("i64.shr_s", b, top), a));
  }
  and(a: Int, b: Int): Int {
    return this.plain("i64.and", a, b, Math.min(nodeOf(a).bits, nodeOf(b).bits));
  }
  or(a: Int, b: Int): Int {
    return this.plain("i64.or", a, b, this.widest(a, b));
  }
  xor(a: Int, b: Int): Int {
    return this.plain("i64.xor", a, b, this.widest(a, b));
  }
  not(a: Int, size?: Size): Int {
    return this.plain("i64.xor", a, this.int(maskOf(size ?? this.size)), Math.max(nodeOf(a).bits, size ?? this.size));
  }
  neg(a: Int, size?: Size): Int {
    return this.sized("i64.sub", this.int(0), a, size);
  }
  shl(a: Int, count: Int, size?: Size): Int {
    return this.sized("i64.shl", a, count, size);
  }
  shr(a: Int, count: Int): Int {
    return this.plain("i64.shr_u", a, count, nodeOf(a).bits);
  }
  sar(a: Int, count: Int, size?: Size): Int {
    const width = size ?? this.size;
    return asInt(this.fits(nodeOf(this.plain("i64.shr_s", this.signExtend(a, width), count)), width));
  }
  div(a: Int, b: Int, signed: boolean): Int {
    return asInt(this.faulting(signed ? "i64.div_s" : "i64.div_u", a, b));
  }
  rem(a: Int, b: Int, signed: boolean): Int {
    return asInt(this.faulting(signed ? "i64.rem_s" : "i64.rem_u", a, b));
  }
  /** Division traps on zero, so that it must not move into or out of the row's guards. */
  protected faulting(name: string, a: Int, b: Int): Node {
    const result = makeResult("i64");
    this.effect([nodeOf(a), nodeOf(b)], NOTHING, (c) => c.op(name), result);
    return result;
  }
  signExtend(a: Int, from: Size): Int {
    const node = nodeOf(a);
    if (from === 64) return a;
    return asInt(this.operation(`i64.extend${from}_s`, [node]));
  }
  truncate(a: Int, to: Size): Int {
    return asInt(this.fits(nodeOf(a), to));
  }
  countLeadingZeros(a: Int): Int {
    return asInt(this.operation("i64.clz", [nodeOf(a)], 7));
  }
  countTrailingZeros(a: Int): Int {
    return asInt(this.operation("i64.ctz", [nodeOf(a)], 7));
  }
  popCount(a: Int): Int {
    return asInt(this.operation("i64.popcnt", [nodeOf(a)], 7));
  }
  byteSwap(a: Int, size: 32 | 64): Int {
    const bytes = (x: Int): Int => {
      const mask = this.int(0x00ff_00ff_00ff_00ffn);
      const eight = this.int(8);
      return this.or(this.and(this.shr(x, eight), mask), this.plain("i64.shl", this.and(x, mask), eight));
    };
    const words = (x: Int): Int => {
      const mask = this.int(0x0000_ffff_0000_ffffn);
      const sixteen = this.int(16);
      return this.or(this.and(this.shr(x, sixteen), mask), this.plain("i64.shl", this.and(x, mask), sixteen));
    };
    const halves = words(bytes(a));
    if (size === 32) return this.truncate(halves, 32);
    return this.plain("i64.rotl", halves, this.int(32));
  }

  // ---- Comparison and logic ----

  eq(a: Int, b: Int): Bool {
    return asBool(this.operation("i64.eq", [nodeOf(a), nodeOf(b)]));
  }
  ne(a: Int, b: Int): Bool {
    return asBool(this.operation("i64.ne", [nodeOf(a), nodeOf(b)]));
  }
  ltu(a: Int, b: Int): Bool {
    return asBool(this.operation("i64.lt_u", [nodeOf(a), nodeOf(b)]));
  }
  lts(a: Int, b: Int): Bool {
    return asBool(this.operation("i64.lt_s", [nodeOf(a), nodeOf(b)]));
  }
  /** Numbers of `size` bits, zero-extended. */
  protected compare(relation: Relation, a: Int, b: Int, size: Size): Bool {
    if (size === 32) return asBool(this.operation(`i32.${relation}`, [this.low(a), this.low(b)]));
    if (!relation.endsWith("_s")) return asBool(this.operation(`i64.${relation}`, [nodeOf(a), nodeOf(b)]));
    return asBool(this.operation(`i64.${relation}`, [nodeOf(this.signExtend(a, size)), nodeOf(this.signExtend(b, size))]));
  }
  /** Sign of a number of `size` bits, zero-extended. */
  protected isNegative(a: Int, size: Size): Bool {
    return this.compare("lt_s", a, this.int(0), size);
  }
  /** Low 32 bits, as an i32. */
  protected low(a: Int): Node {
    return narrow(this.#maker, nodeOf(a));
  }
  isZero(a: Int): Bool {
    return asBool(this.operation("i64.eqz", [nodeOf(a)]));
  }
  bit(a: Int, index: number | Int): Bool {
    const count = typeof index === "number" ? this.int(index) : index;
    return asBool(this.operation("i32.wrap_i64", [nodeOf(this.and(this.shr(a, count), this.int(1)))]));
  }
  not1(a: Bool): Bool {
    return asBool(this.operation("i32.eqz", [nodeOf(a)]));
  }
  and1(a: Bool, b: Bool): Bool {
    return asBool(this.operation("i32.and", [nodeOf(a), nodeOf(b)]));
  }
  or1(a: Bool, b: Bool): Bool {
    return asBool(this.operation("i32.or", [nodeOf(a), nodeOf(b)]));
  }
  xor1(a: Bool, b: Bool): Bool {
    return asBool(this.operation("i32.xor", [nodeOf(a), nodeOf(b)]));
  }
  toInt(a: Bool): Int {
    return asInt(this.operation("i64.extend_i32_u", [nodeOf(a)], 32));
  }
  select(condition: Bool, whenTrue: Int, whenFalse: Int): Int {
    const known = nodeOf(condition).constant;
    if (known !== undefined) return known !== 0n ? whenTrue : whenFalse;
    const args = [nodeOf(whenTrue), nodeOf(whenFalse), nodeOf(condition)];
    return asInt(this.value("i64", args, (c) => c.op("select"), NOTHING, this.widest(whenTrue, whenFalse)));
  }

  protected toTop(vector: Int, size: Size): Int {
    return size === 64 ? vector : this.plain("i64.shl", vector, this.int(64 - size));
  }
  // ---- Flags (flags.ts describes the lazy form) ----

  protected negative(a: Int): Bool {
    return this.lts(a, this.int(0));
  }
  protected signWord(): Int {
    return this.xor(this.state(state.flagResult, 64), this.plain("i64.shl", this.state(state.flagAux, 32), this.int(32)));
  }
  protected overflowWord(): Int {
    const carry = this.state(state.flagCarry, 64);
    return this.xor(carry, this.plain("i64.shl", carry, this.int(1)));
  }
  /** The flag as the words in the state block have it. */
  protected wordFlag(name: FlagName): Bool {
    switch (name) {
      case "CF":
        return this.negative(this.state(state.flagCarry, 64));
      case "OF":
        return this.negative(this.overflowWord());
      case "ZF":
        return this.isZero(this.state(state.flagResult, 64));
      case "SF":
        return this.negative(this.signWord());
      case "AF":
        return this.bit(this.xor(this.state(state.flagResult, 64), this.state(state.flagAux, 32)), 4);
      case "PF": {
        const byte = this.and(this.xor(this.state(state.flagResult, 8), this.state(state.flagAux + 1, 8)), this.int(255));
        return this.not1(this.bit(this.popCount(byte), 0));
      }
    }
  }
  protected wordLessThan(): Bool {
    return this.negative(this.xor(this.signWord(), this.overflowWord()));
  }
  condition(code: ConditionCode): Bool {
    const base = (): Bool => {
      switch (code >> 1) {
        case 0:
          return this.flag("OF");
        case 1:
          return this.flag("CF");
        case 2:
          return this.flag("ZF");
        case 3:
          return this.or1(this.flag("CF"), this.flag("ZF"));
        case 4:
          return this.flag("SF");
        case 5:
          return this.flag("PF");
        case 6:
          return this.lessThan();
        case 7:
          return this.or1(this.flag("ZF"), this.lessThan());
        default:
          return this.fail(`no condition ${code}`);
      }
    };
    return (code & 1) === 0 ? base() : this.not1(base());
  }
  formCondition(): Bool {
    const code = this.variant.condition;
    return code === undefined ? this.fail("the form has no condition") : this.condition(code);
  }
  /** The statements that `body` makes; what it computed is not there outside of it. */
  protected branch(body: () => void): Statement[] {
    const { statements, addresses, places, vectors } = this;
    this.statements = [];
    body();
    const inner = this.statements;
    this.statements = statements;
    this.addresses = addresses;
    this.places = places;
    this.vectors = vectors;
    return inner;
  }
  if(condition: Bool, whenTrue: () => void, whenFalse?: () => void): void {
    const known = nodeOf(condition).constant;
    if (known !== undefined) {
      (known !== 0n ? whenTrue : whenFalse)?.();
      return;
    }
    const onTrue = this.branch(whenTrue);
    const onFalse = whenFalse === undefined ? [] : this.branch(whenFalse);
    this.statements.push({ kind: "if", condition: nodeOf(condition), whenTrue: onTrue, whenFalse: onFalse });
  }
  /** As `if`, and says that the condition rarely holds. */
  protected seldom(condition: Bool, body: () => void): void {
    const before = this.statements.length;
    this.if(condition, body);
    const made = this.statements[this.statements.length - 1];
    if (this.statements.length > before && made?.kind === "if") made.isSeldom = true;
  }
  loopWhile(body: () => Bool): void {
    let condition: Bool | undefined;
    const statements = this.branch(() => {
      condition = body();
    });
    this.statements.push({ kind: "loop", body: statements, condition: nodeOf(condition as unknown as Bool) });
  }
  raiseIf(
    condition: Bool,
    vector: "#DE" | "#UD" | "#NM" | "#SS" | "#GP" | "#MF" | "#XM" | "#BR" | "#OF",
    error?: number,
  ): void {
    this.seldom(condition, () => this.raise(vector, error));
  }

  low32(a: Int): Bool {
    return asBool(this.operation("i32.wrap_i64", [nodeOf(a)]));
  }
  fromI32(a: Bool): Int {
    return asInt(this.operation("i64.extend_i32_u", [nodeOf(a)], 32));
  }

  // ---- Strings ----

  /** Pushes whether the run was done, by calling `run`; `pushOperation` pushes the operation's record. */
  protected runNode(kind: "move" | "store", run: number, pushOperation: (c: Code) => void): Bool {
    const done = makeResult("i32");
    const other = kind === "move" ? this.reg(RSI, 64) : this.reg(RAX, this.size as Size);
    const [count, to, last] = [this.reg(RCX, 64), this.reg(RDI, 64), other].map(nodeOf);
    const operation = this.value("i32", [], pushOperation);
    const bytes = this.constant32(this.size / 8);
    this.effect([operation, count, to, last, bytes] as Node[], EVERYTHING, (c) => c.call(run), done);
    return asBool(done);
  }
  /** After a run: what the registers are then. */
  protected finishRun(kind: "move" | "store"): void {
    const length = this.shl(this.reg(RCX, 64), this.int(Math.log2(this.size / 8)), 64);
    this.setReg(RDI, 64, this.add(this.reg(RDI, 64), length, 64));
    if (kind === "move") this.setReg(RSI, 64, this.add(this.reg(RSI, 64), length, 64));
    this.setReg(RCX, 64, this.int(0));
  }

  // ---- Vector operands ----

  /** Memory operands that views have read, so that both halves read once. */
  protected vectors: ByOperand<readonly Node[]> = [];
  /** The lower of two halves is being emitted. */
  protected isLowerHalf = false;

  protected abstract readVector(operand: FormOperand): Vec;
  protected abstract writeVector(operand: FormOperand, value: Vec): void;
  protected abstract readPair(operand: FormOperand): readonly [Vec, Vec];
  protected abstract checkAlignment(operand: FormOperand, bytes: number): void;
  abstract writeHalves(operand: FormOperand, low: Vec, high: Vec): void;

  readVec(operand: FormOperand): Vec {
    const { view } = operand;
    if (view === undefined) return this.readVector(operand);
    if (view.value !== undefined) return view.value;
    const from = view.reads ?? operand;
    const isPair = this.sizeOf(from) === 256;
    if (!this.isMemory(from)) return isPair ? this.readHalves(from)[view.half] : this.readVector(from);
    let parts = this.vectors[from.position];
    if (parts === undefined) {
      parts = (isPair ? this.readHalves(from) : [this.readVector(from)]).map(nodeOf);
      this.vectors = withOperand(this.vectors, from.position, parts);
    }
    return asVec(parts[isPair ? view.half : 0] as Node);
  }
  readHalves(operand: FormOperand): readonly [Vec, Vec] {
    return this.readPair(operand);
  }
  writeVec(operand: FormOperand, value: Vec): void {
    if (operand.view?.written !== undefined) operand.view.written(value);
    else this.writeVector(operand, value);
  }
  checkAligned(operand: FormOperand, bytes = operand.view?.alignment ?? 16): void {
    // Both halves have one address
    if (this.isMemory(operand) && bytes !== 0 && operand.view?.half !== 1) this.checkAlignment(operand, bytes);
  }
  inHalves<V>(body: (half: 0 | 1) => V): readonly [V, V] {
    this.isLowerHalf = true;
    const low = body(0);
    this.isLowerHalf = false;
    return [low, body(1)];
  }
  /** The immediate as the operand's view has it. */
  protected viewedImmediate(operand: FormOperand): Int {
    const { shift } = operand.view ?? { shift: 0 };
    return shift === 0 ? this.immediate() : this.shr(this.immediate(), this.int(shift));
  }
  abstract immediate(): Int;

  // ---- Vectors and floating point ----

  vec(operation: string, ...args: Value[]): Vec {
    return asVec(this.operation(operation, args.map(nodeOf)));
  }
  lane(operation: string, laneIndex: number, ...args: Value[]): Value {
    const emit = (c: Code): void => {
      c.lane(operation, laneIndex);
    };
    return this.value(resultType(operation), args.map(nodeOf), emit) as unknown as Value;
  }
  shuffle(a: Vec, b: Vec, lanes: readonly number[]): Vec {
    return asVec(this.value("v128", [nodeOf(a), nodeOf(b)], (c) => c.shuffle(lanes)));
  }
  vecConst(bytes: readonly number[]): Vec {
    return asVec(this.value("v128", [], (c) => c.v128(bytes)));
  }
  scalar(operation: string, ...args: Value[]): Value {
    return this.operation(operation, args.map(nodeOf)) as unknown as Value;
  }

  // ---- Checks of the row ----

  protected require(requirement: Requirement): void {
    const cr0 = this.state(state.cr0, 32);
    const anyOf = (value: Int, mask: number): Bool => this.ne(this.and(value, this.int(mask)), this.int(0));
    const pendingFault = (): Bool => anyOf(this.state(state.fpuStatus, 16), 0x80);
    switch (requirement) {
      case "fpu":
        this.raiseIf(anyOf(cr0, CR0_EM | CR0_TS), "#NM");
        this.raiseIf(pendingFault(), "#MF");
        return;
      case "waitFpu":
        this.raiseIf(this.eq(this.and(cr0, this.int(CR0_MP | CR0_TS)), this.int(CR0_MP | CR0_TS)), "#NM");
        this.raiseIf(pendingFault(), "#MF");
        return;
      case "mmx":
        this.raiseIf(anyOf(cr0, CR0_EM), "#UD");
        this.raiseIf(anyOf(cr0, CR0_TS), "#NM");
        this.raiseIf(pendingFault(), "#MF");
        return;
      case "sse": {
        if (this.knows("sse")) return;
        const noFxsr = this.xor(this.and(this.state(state.cr4, 32), this.int(CR4_OSFXSR)), this.int(CR4_OSFXSR));
        const bad = this.or(this.and(cr0, this.int(CR0_EM | CR0_TS)), noFxsr);
        this.seldom(this.ne(bad, this.int(0)), () => {
          this.raiseIf(this.or1(anyOf(cr0, CR0_EM), this.ne(noFxsr, this.int(0))), "#UD");
          this.raise("#NM");
        });
        this.learn("sse");
        return;
      }
      case "avx": {
        if (this.knows("avx")) return;
        const lacks = (offset: number, bits: number): Int => {
          return this.xor(this.and(this.state(offset, 32), this.int(bits)), this.int(bits));
        };
        const virtual8086 = this.and(this.state(state.systemFlags, 32), this.int(VM));
        const disabled = [lacks(state.cr4, CR4_OSXSAVE), lacks(state.xcr0, XCR0_AVX), lacks(state.cr0, CR0_PE)];
        const undefinedIf = disabled.reduce((a, b) => this.or(a, b), virtual8086);
        this.seldom(this.ne(this.or(undefinedIf, this.and(cr0, this.int(CR0_TS))), this.int(0)), () => {
          this.raiseIf(this.ne(undefinedIf, this.int(0)), "#UD");
          this.raise("#NM");
        });
        this.learn("avx");
        return;
      }
      case "cpl0":
        this.raiseIf(this.ne(this.state(state.cpl, 32), this.int(0)), "#GP", 0);
        return;
      case "protected": {
        const virtual8086 = anyOf(this.state(state.systemFlags, 32), 0x2_0000);
        this.raiseIf(this.or1(this.not1(anyOf(cr0, 1)), virtual8086), "#UD");
        return;
      }
    }
  }
}
