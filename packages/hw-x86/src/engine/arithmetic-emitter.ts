/** The emitters' building blocks, and arithmetic: nodes of values, simplified where operands are known. */
import type { OperandAccess, Variant } from "./decoder/variant.ts";
import type { Bool, Int, Size, Value, Variable, Vec } from "./emitter.ts";
import type { FormOperand } from "./instruction.ts";
import {
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
import { isBelow32, NARROWED, narrow } from "./narrowing.ts";
import { asBool, asInt, bitLength, constant32, constant64, constantOf, maskOf, nodeOf } from "./node-values.ts";
import { simplify } from "./simplification.ts";
import type { Code } from "./wasm/code.ts";
import { resultType, type ValueType } from "./wasm/opcodes.ts";

/** How two numbers compare, as WebAssembly calls it. */
export type Relation = "eq" | "lt_u" | "le_u" | "lt_s" | "le_s";

export abstract class ArithmeticEmitter {
  readonly size: Size;
  protected readonly variant: Variant;
  protected statements: Statement[] = [];
  /** For `narrow`. */
  readonly #operation = (name: string, args: readonly Node[], bits?: number): Node => this.operation(name, args, bits);

  constructor(variant: Variant) {
    this.variant = variant;
    this.size = variant.size;
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
      return resultType(name) === "i64" ? constant64(simpler) : constant32(Number(simpler));
    }
    return this.value(resultType(name), args, undefined, NOTHING, bits, name);
  }
  protected effect(args: readonly Node[], writes: number, emit: (code: Code, scope: Scope) => void, result?: Node): void {
    this.statements.push({ kind: "effect", args, writes, result, emit });
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
    if (node.constant !== undefined) return constant64(node.constant & mask);
    if (mask === 0xffff_ffffn && node.name !== undefined && node.name in NARROWED) {
      return this.operation("i64.extend_i32_u", [narrow(this.#operation, node)], 32);
    }
    return this.operation("i64.and", [node, constant64(mask)], Math.min(node.bits, bitLength(mask)));
  }
  protected fail(what: string): never {
    throw new Error(`${this.variant.name}: ${what}`);
  }

  // ---- Constants and variables ----

  int(value: number | bigint): Int {
    return asInt(typeof value === "number" ? constantOf(value) : constant64(value));
  }
  valueOf(integer: Int): bigint | undefined {
    return nodeOf(integer).constant;
  }
  bool(value: boolean): Bool {
    return asBool(constant32(value ? 1 : 0));
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
  /**
   * Logic on 32 bits, in 32 bits: between a wider operation and a narrower one the host's compiler puts a move, in the middle of what the
   * next instruction waits for.
   */
  #logic(name: "and" | "or" | "xor", a: Int, b: Int, bits: number): Int {
    if (this.widest(a, b) !== 32) return this.plain(`i64.${name}`, a, b, bits);
    const result = this.operation(`i32.${name}`, [this.low(a), this.low(b)]);
    return asInt(this.operation("i64.extend_i32_u", [result], bits));
  }
  and(a: Int, b: Int): Int {
    return this.#logic("and", a, b, Math.min(nodeOf(a).bits, nodeOf(b).bits));
  }
  or(a: Int, b: Int): Int {
    return this.#logic("or", a, b, this.widest(a, b));
  }
  xor(a: Int, b: Int): Int {
    return this.#logic("xor", a, b, this.widest(a, b));
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
    const { bits } = nodeOf(a);
    if (bits !== 32 || !isBelow32(nodeOf(count))) return this.plain("i64.shr_u", a, count, bits);
    return asInt(this.operation("i64.extend_i32_u", [this.operation("i32.shr_u", [this.low(a), this.low(count)])], bits));
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
    if (from === 64 || node.bits < from) return a;
    if (from === 32 && node.name === "i64.extend_i32_u") return asInt(this.operation("i64.extend_i32_s", node.args));
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
    return narrow(this.#operation, nodeOf(a));
  }
  isZero(a: Int): Bool {
    const node = nodeOf(a);
    const isNarrow = node.name === "i64.extend_i32_u";
    return asBool(isNarrow ? this.operation("i32.eqz", node.args) : this.operation("i64.eqz", [node]));
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
  low32(a: Int): Bool {
    return asBool(this.operation("i32.wrap_i64", [nodeOf(a)]));
  }
  fromI32(a: Bool): Int {
    return asInt(this.operation("i64.extend_i32_u", [nodeOf(a)], 32));
  }
}
