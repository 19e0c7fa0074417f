/** The emitter of the interpreter: operands are found at run time through the operation's record. */
import { DS, ES, gprOffset, SEG_EFFECTIVE_BASE, segmentOffset, state } from "../cpu-state.ts";
import type { OperandAccess, Variant } from "../decoder/variant.ts";
import type { Bool, ConditionCode, Emitter, FlagName, Int, Size, Value, Variable, Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { block, OP_BYTES, op } from "../operation.ts";
import { Vector } from "../system/bits.ts";
import type { Code } from "../wasm/code.ts";
import { resultType, type ValueType } from "../wasm/opcodes.ts";
import { emitProbe } from "./memory-code.ts";
import {
  EVERYTHING,
  FLAGS,
  GENERAL,
  makeNode,
  NOTHING,
  type Node,
  OTHER,
  type Scope,
  type Statement,
  schedule,
  VARIABLES,
  type VariableSlot,
  VECTOR,
} from "./schedule.ts";
import type { HandlerTarget, HandlerTraits } from "./target.ts";

const RFLAGS_BITS: Readonly<Record<FlagName, number>> = { CF: 0, PF: 2, AF: 4, ZF: 6, SF: 7, OF: 11 };
const DIRECTION = 0x400;
const CR0_EM = 4,
  CR0_MP = 2,
  CR0_TS = 8,
  CR4_OSFXSR = 0x200;
const SIGN = 1n << 63n;

// Handles are nodes; the types of emitter.ts keep rows from mixing them up.
const asInt = (node: Node): Int => node as unknown as Int;
const asBool = (node: Node): Bool => node as unknown as Bool;
const asVec = (node: Node): Vec => node as unknown as Vec;
const nodeOf = (value: Value): Node => value as unknown as Node;

function groupOf(offset: number): number {
  if (offset >= state.gpr && offset < state.gpr + 128) return GENERAL;
  if (offset >= state.flagResult && offset < state.flagAux + 4) return FLAGS;
  if (offset >= state.xmm && offset < state.xmm + 256) return VECTOR;
  return OTHER;
}

const LOAD64: Readonly<Record<Size, string>> = { 8: "i64.load8_u", 16: "i64.load16_u", 32: "i64.load32_u", 64: "i64.load" };
const STORE64: Readonly<Record<Size, string>> = { 8: "i64.store8", 16: "i64.store16", 32: "i64.store32", 64: "i64.store" };
const maskOf = (size: Size): bigint => (1n << BigInt(size)) - 1n;

export class InterpreterEmitter implements Emitter {
  readonly size: Size;
  readonly traits: HandlerTraits = { endsBlock: false, usesMemory: false, usesAddress: false };
  readonly #variant: Variant;
  readonly #target: HandlerTarget;
  #statements: Statement[] = [];
  readonly #pc: Node;
  readonly #fields = new Map<string, Node>();
  readonly #addresses = new Map<number, Node>();
  /** Bank offsets that `readForWrite` found, by operand position. */
  readonly #places = new Map<number, Node>();

  constructor(variant: Variant, target: HandlerTarget) {
    this.#variant = variant;
    this.#target = target;
    this.size = variant.size;
    this.#pc = makeNode("i32", [], (c) => c.get(target.pc), { constant: -1n });
  }

  /** Emits the whole handler: the row's checks, its semantics and the way to the next operation. */
  emitHandler(): void {
    const { instruction, operands } = this.#variant;
    for (const requirement of instruction.requires ?? []) this.#require(requirement);
    instruction.semantics(this, operands);
    this.#advance();
    schedule(this.#statements, this.#target.fn);
  }

  // ---- Building blocks ----

  #value(
    type: ValueType,
    args: readonly Node[],
    emit: (code: Code) => void,
    options: { reads?: number; bits?: number; constant?: bigint } = {},
  ): Node {
    const node = makeNode(type, args, emit, options);
    this.#statements.push({ kind: "value", node });
    return node;
  }
  #operation(name: string, args: readonly Node[], bits = 64): Node {
    return this.#value(resultType(name), args, (c) => c.op(name), { bits });
  }
  #effect(args: readonly Node[], writes: number, emit: (code: Code, scope: Scope) => void, result?: Node): void {
    this.#statements.push({ kind: "effect", args, writes, result, emit });
  }
  #constant(value: bigint): Node {
    const wrapped = BigInt.asUintN(64, value);
    return this.#value("i64", [], (c) => c.i64(wrapped), { constant: wrapped, bits: wrapped.toString(2).length });
  }
  #constant32(value: number): Node {
    return this.#value("i32", [], (c) => c.i32(value), { constant: BigInt(value) });
  }
  /** A field of the operation's record; never changes while the operation runs. */
  #field(offset: number, load: string, bits = 64): Node {
    const key = `${offset}:${load}`;
    let node = this.#fields.get(key);
    if (node === undefined) {
      node = this.#value(resultType(load), [this.#pc], (c) => c.memory(load, offset), { bits });
      this.#fields.set(key, node);
    }
    return node;
  }
  #access(operand: FormOperand): OperandAccess {
    const access = this.#variant.access[operand.position];
    if (access === undefined) throw new Error(`${this.#variant.name}: no operand ${operand.position}`);
    return access;
  }
  #fieldOf(access: { field: "a" | "b" | "c" }): Node {
    return this.#field(op[access.field], "i32.load16_u");
  }
  #fits(node: Node, size: Size): Node {
    return node.bits <= size ? node : this.#and(node, maskOf(size));
  }
  #and(node: Node, mask: bigint): Node {
    if (node.constant !== undefined) return this.#constant(node.constant & mask);
    return this.#operation("i64.and", [node, this.#constant(mask)], Math.min(node.bits, mask.toString(2).length));
  }
  #fail(what: string): never {
    throw new Error(`${this.#variant.name}: ${what}`);
  }

  // ---- Constants and variables ----

  int(value: number | bigint): Int {
    return asInt(this.#constant(BigInt(value)));
  }
  bool(value: boolean): Bool {
    return asBool(this.#constant32(value ? 1 : 0));
  }
  variable(type: "i64", initial: Int): Variable<Int>;
  variable(type: "i32", initial: Bool): Variable<Bool>;
  variable(type: "v128", initial: Vec): Variable<Vec>;
  variable<V extends Value>(type: ValueType, initial: V): Variable<V> {
    const slot: VariableSlot = { type, local: -1 };
    this.#statements.push({ kind: "declare", variable: slot, initial: nodeOf(initial) });
    return {
      get: () => this.#value(type, [], (c) => c.get(slot.local), { reads: VARIABLES }) as unknown as V,
      set: (value) => {
        this.#statements.push({ kind: "assign", variable: slot, value: nodeOf(value) });
      },
    };
  }

  // ---- Operands ----

  sizeOf(operand: FormOperand): number {
    const access = this.#access(operand);
    return "size" in access ? access.size : 64;
  }
  isMemory(operand: FormOperand): boolean {
    return this.#access(operand).kind === "memory";
  }
  read(operand: FormOperand): Int {
    const access = this.#access(operand);
    switch (access.kind) {
      case "gpr":
        return asInt(this.#loadState(this.#fieldOf(access), access.size, GENERAL));
      case "fixedGpr":
        return this.reg(access.register, access.size);
      case "memory":
        return asInt(this.#loadGuest(this.#linear(operand, sizeBytes(access.size)), integerSize(access.size)));
      case "immediate":
      case "farPointer":
        return this.immediate();
      case "constant":
        return this.int(access.value);
      case "xmm":
      case "mm":
        return asInt(
          this.#loadState(
            this.#fieldOf(access),
            integerSize(Math.min(access.size, 64)),
            access.kind === "xmm" ? VECTOR : OTHER,
          ),
        );
      case "segmentRegister":
      case "controlRegister":
      case "debugRegister":
      case "stackIndex":
        return asInt(this.#field(op[access.field], "i64.load16_u", 16));
      case "relative":
        return this.#fail("a relative operand has no value; use jumpRelative or branchRelative");
    }
  }
  readForWrite(operand: FormOperand): Int {
    const access = this.#access(operand);
    if (access.kind !== "memory") return this.read(operand);
    const size = integerSize(access.size);
    const bytes = size / 8;
    const linear = this.#linear(operand, bytes, true);
    const place = makeNode("i32", [], () => undefined);
    if (this.#target.main !== undefined)
      this.#effect([linear], NOTHING, (c, scope) => this.#probe(c, scope, true, bytes), place);
    else {
      const { common } = this.#target;
      this.#effect([this.#pc, linear, this.#constant32(bytes)], NOTHING, (c) => c.call(common.rmwProbe), place);
    }
    this.#places.set(operand.position, place);
    const value = makeNode("i64", [], () => undefined, { bits: size });
    this.#effect([place], NOTHING, (c) => c.memory(LOAD64[size], 0), value);
    return asInt(value);
  }
  write(operand: FormOperand, value: Int): void {
    const access = this.#access(operand);
    switch (access.kind) {
      case "gpr":
        this.#storeState(this.#fieldOf(access), access.size, nodeOf(value), GENERAL);
        return;
      case "fixedGpr":
        this.setReg(access.register, access.size, value);
        return;
      case "memory": {
        const size = integerSize(access.size);
        const place = this.#places.get(operand.position);
        if (place === undefined) this.#storeGuest(this.#linear(operand, size / 8, true), size, nodeOf(value));
        else this.#storePlace(place, size, nodeOf(value));
        return;
      }
      case "mm":
        this.#effect([this.#fieldOf(access), nodeOf(value)], OTHER, (c) => c.memory("i64.store", 0));
        this.#markMmx(access);
        return;
      default:
        this.#fail(`cannot write operand ${operand.text}`);
    }
  }
  address(operand: FormOperand): Int {
    let node = this.#addresses.get(operand.position);
    if (node !== undefined) return asInt(node);
    if (this.#access(operand).kind !== "memory") this.#fail(`${operand.text} is no memory operand here`);
    this.traits.usesAddress = true;
    this.traits.usesMemory = true;
    const { flat, noIndex, common } = this.#target;
    if (flat) {
      const base = this.#value("i64", [this.#field(op.base, "i32.load16_u")], (c) => c.memory("i64.load", 0), {
        reads: GENERAL,
      });
      let sum = this.#operation("i64.add", [base, this.#field(op.displacement, "i64.load32_s")]);
      if (!noIndex) {
        const index = this.#value("i64", [this.#field(op.index, "i32.load16_u")], (c) => c.memory("i64.load", 0), {
          reads: GENERAL,
        });
        sum = this.#operation("i64.add", [this.#operation("i64.shl", [index, this.#field(op.scale, "i64.load8_u", 8)]), sum]);
      }
      node = this.#operation("i64.and", [sum, this.#stateNode(state.flatMask, 64)]);
    } else node = this.#value("i64", [this.#pc], (c) => c.call(common.effectiveAddress), { reads: GENERAL });
    this.#addresses.set(operand.position, node);
    return asInt(node);
  }

  // ---- Vector operands ----

  readVec(operand: FormOperand): Vec {
    const access = this.#access(operand);
    switch (access.kind) {
      case "xmm":
        return asVec(this.#value("v128", [this.#fieldOf(access)], (c) => c.memory("v128.load", 0), { reads: VECTOR }));
      case "mm":
        return asVec(this.#value("v128", [this.#fieldOf(access)], (c) => c.memory("v128.load64_zero", 0), { reads: OTHER }));
      case "memory": {
        const load = ({ 32: "v128.load32_zero", 64: "v128.load64_zero", 128: "v128.load" } as Record<number, string>)[
          access.size
        ];
        if (load === undefined) return this.#fail(`no vector of ${access.size} bits`);
        const linear = this.#linear(operand, access.size / 8);
        const { common } = this.#target;
        const place = makeNode("i32", [], () => undefined);
        if (this.#target.main !== undefined)
          this.#effect([linear], NOTHING, (c, scope) => this.#probe(c, scope, false, access.size / 8), place);
        else
          this.#effect([this.#pc, linear, this.#constant32(access.size / 8)], NOTHING, (c) => c.call(common.readProbe), place);
        const value = makeNode("v128", [], () => undefined);
        this.#effect([place], NOTHING, (c) => c.memory(load, 0), value);
        return asVec(value);
      }
      default:
        return this.#fail(`${operand.text} is no vector`);
    }
  }
  writeVec(operand: FormOperand, value: Vec): void {
    const access = this.#access(operand);
    switch (access.kind) {
      case "xmm":
        this.#effect([this.#fieldOf(access), nodeOf(value)], VECTOR, (c) => c.memory("v128.store", 0));
        return;
      case "mm":
        this.#effect(
          [this.#fieldOf(access), this.#value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0))],
          OTHER,
          (c) => c.memory("i64.store", 0),
        );
        this.#markMmx(access);
        return;
      case "memory": {
        const linear = this.#linear(operand, access.size / 8, true);
        const { common } = this.#target;
        if (access.size === 128) {
          this.#effect([this.#pc, linear, nodeOf(value)], NOTHING, (c) => c.call(common.write[4] as number));
        } else {
          const lane = this.#value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0));
          this.#storeGuest(linear, integerSize(access.size), lane);
        }
        return;
      }
      default:
        this.#fail(`${operand.text} is no vector`);
    }
  }
  checkAligned(operand: FormOperand): void {
    if (!this.isMemory(operand)) return;
    const offset = this.#operation("i64.add", [nodeOf(this.address(operand)), this.#segmentBase()]);
    this.raiseIf(this.ne(asInt(this.#and(offset, 15n)), this.int(0)), "#GP", 0);
  }

  // ---- Registers, memory, state ----

  reg(index: number, size: Size): Int {
    return asInt(this.#stateNode(gprOffset(index), size));
  }
  setReg(index: number, size: Size, value: Int): void {
    this.#storeState(this.#constant32(gprOffset(index)), size, nodeOf(value), GENERAL);
  }
  load(segment: number, offset: Int, size: Size): Int {
    return asInt(this.#loadGuest(this.#linearOf(segment, nodeOf(offset), size / 8, false), size));
  }
  store(segment: number, offset: Int, size: Size, value: Int): void {
    this.#storeGuest(this.#linearOf(segment, nodeOf(offset), size / 8, true), size, nodeOf(value));
  }
  loadDefault(offset: Int, size: Size): Int {
    return asInt(
      this.#loadGuest(this.#linearIn(this.#field(op.segment, "i32.load16_u"), nodeOf(offset), size / 8, false), size),
    );
  }
  probeStoreDefault(offset: Int, size: Size): void {
    const linear = this.#linearIn(this.#field(op.segment, "i32.load16_u"), nodeOf(offset), size / 8, true);
    this.#effect([this.#pc, linear, this.#constant32(size / 8)], NOTHING, (c) =>
      c.call(this.#target.common.rmwProbe).op("drop"),
    );
  }
  storeDefault(offset: Int, size: Size, value: Int): void {
    this.#storeGuest(
      this.#linearIn(this.#field(op.segment, "i32.load16_u"), nodeOf(offset), size / 8, true),
      size,
      nodeOf(value),
    );
  }
  probeStore(segment: number, offset: Int, size: Size): void {
    const linear = this.#linearOf(segment, nodeOf(offset), size / 8, true);
    this.#effect([this.#pc, linear, this.#constant32(size / 8)], NOTHING, (c) =>
      c.call(this.#target.common.rmwProbe).op("drop"),
    );
  }
  addressMask(): Int {
    const width = this.#operation("i64.sub", [this.#constant(64n), this.#field(op.addressSize, "i64.load8_u", 8)]);
    return asInt(this.#operation("i64.shr_u", [this.#constant(-1n), width]));
  }
  immediate(): Int {
    return asInt(this.#field(op.immediate, "i64.load"));
  }
  state(offset: number, size: Size): Int {
    return asInt(this.#stateNode(offset, size));
  }
  setState(offset: number, size: Size, value: Int): void {
    this.#effect([this.#constant32(0), nodeOf(value)], groupOf(offset), (c) => c.memory(STORE64[size], offset));
  }

  #stateNode(offset: number, size: Size): Node {
    return this.#value("i64", [this.#constant32(0)], (c) => c.memory(LOAD64[size], offset), {
      reads: groupOf(offset),
      bits: size,
    });
  }
  #loadState(place: Node, size: Size, group: number): Node {
    return this.#value("i64", [place], (c) => c.memory(LOAD64[size], 0), { reads: group, bits: size });
  }
  #storeState(place: Node, size: Size, value: Node, group: number): void {
    // A 32-bit result clears the upper half of a 64-bit register.
    const stored = size === 32 ? this.#fits(value, 32) : value;
    const store = size === 32 ? "i64.store" : STORE64[size];
    this.#effect([place, stored], group, (c) => c.memory(store, 0));
  }
  #segmentBase(): Node {
    if (this.#target.flat) return this.#constant(0n);
    return this.#value("i64", [this.#field(op.segment, "i32.load16_u")], (c) => c.memory("i64.load", SEG_EFFECTIVE_BASE), {
      reads: OTHER,
    });
  }

  /** Linear address of a memory operand, limits checked. */
  #linear(operand: FormOperand, bytes: number, isWrite = false): Node {
    return this.#linearIn(this.#field(op.segment, "i32.load16_u"), nodeOf(this.address(operand)), bytes, isWrite);
  }
  #linearOf(segment: number, offset: Node, bytes: number, isWrite: boolean): Node {
    // Operands of 64 bits exist in 64-bit mode only, where these four segments are flat.
    if (this.size === 64 && segment >= ES && segment <= DS) return offset;
    return this.#linearIn(this.#constant32(segmentOffset(segment)), offset, bytes, isWrite);
  }
  #linearIn(slot: Node, offset: Node, bytes: number, isWrite: boolean): Node {
    this.traits.usesMemory = true;
    if (this.#target.flat) return offset;
    const { common } = this.#target;
    const result = makeNode("i64", [], () => undefined);
    this.#effect(
      [this.#pc, slot, offset, this.#constant32(bytes)],
      NOTHING,
      (c) => c.call(isWrite ? common.linearWrite : common.linearRead),
      result,
    );
    return result;
  }

  #loadGuest(linear: Node, size: Size): Node {
    const bytes = size / 8;
    const value = makeNode("i64", [], () => undefined, { bits: size });
    if (this.#target.main !== undefined) {
      this.#effect(
        [linear],
        NOTHING,
        (c, scope) => {
          this.#probe(c, scope, false, bytes);
          c.memory(LOAD64[size], 0);
        },
        value,
      );
    } else {
      const { common } = this.#target;
      this.#effect(
        [this.#pc, linear, this.#constant32(bytes)],
        NOTHING,
        (c) => c.call(common.readProbe).memory(LOAD64[size], 0),
        value,
      );
    }
    return value;
  }
  #storeGuest(linear: Node, size: Size, value: Node): void {
    const log = Math.log2(size / 8);
    const slow = this.#target.common.write[log] as number;
    if (this.#target.main === undefined) {
      this.#effect([this.#pc, linear, value], NOTHING, (c) => c.call(slow));
      return;
    }
    this.#effect([linear, value], NOTHING, (c, scope) => {
      const held = scope.temporary("i64");
      const address = scope.temporary("i64");
      const place = scope.temporary("i32");
      c.set(held).set(address);
      emitProbe(c, this.#target.fn, address, true, undefined, size / 8);
      c.else().i32(0).end().tee(place).if();
      c.get(place).get(held).memory(STORE64[size], 0);
      c.else();
      c.get(this.#target.pc).get(address).get(held).call(slow);
      c.end();
      scope.release("i64", held);
      scope.release("i64", address);
      scope.release("i32", place);
    });
  }
  #storePlace(place: Node, size: Size, value: Node): void {
    const { common } = this.#target;
    this.#effect([place, value], NOTHING, (c, scope) => {
      const held = scope.temporary("i64");
      const at = scope.temporary("i32");
      c.set(held).tee(at).get(held).memory(STORE64[size], 0);
      c.get(at).i32(SCRATCH_END).op("i32.lt_u").if();
      c.call(common.imports.rmwFinish).end();
      scope.release("i64", held);
      scope.release("i32", at);
    });
  }
  /** Linear address on the stack -> bank offset on the stack, inline. */
  #probe(c: Code, scope: Scope, isWrite: boolean, bytes: number): void {
    const { common, fn, pc } = this.#target;
    const address = scope.temporary("i64");
    c.set(address);
    emitProbe(c, fn, address, isWrite, undefined, bytes);
    c.else();
    c.get(pc)
      .get(address)
      .i32(bytes)
      .call(isWrite ? common.rmwProbe : common.readProbe);
    c.end();
    scope.release("i64", address);
  }
  #markMmx(access: { field: "a" | "b" | "c" }): void {
    this.#effect([this.#fieldOf(access)], OTHER, (c) => c.i32(0xffff).memory("i32.store16", 8));
  }

  // ---- Integer arithmetic ----

  #sized(name: string, a: Int, b: Int, size: Size | undefined): Int {
    const node = this.#operation(name, [nodeOf(a), nodeOf(b)]);
    return asInt(this.#fits(node, size ?? this.size));
  }
  #plain(name: string, a: Int, b: Int, bits = 64): Int {
    return asInt(this.#operation(name, [nodeOf(a), nodeOf(b)], bits));
  }
  #bits(a: Int, b: Int): number {
    return Math.max(nodeOf(a).bits, nodeOf(b).bits);
  }
  add(a: Int, b: Int, size?: Size): Int {
    return this.#sized("i64.add", a, b, size);
  }
  sub(a: Int, b: Int, size?: Size): Int {
    return this.#sized("i64.sub", a, b, size);
  }
  mul(a: Int, b: Int, size?: Size): Int {
    return this.#sized("i64.mul", a, b, size);
  }
  mulHigh(a: Int, b: Int, signed: boolean): Int {
    // Schoolbook on 32-bit halves (unsigned); the signed product differs by a multiple of each operand.
    const mask = this.int(0xffff_ffffn);
    const half = this.int(32);
    const [al, ah, bl, bh] = [this.and(a, mask), this.shr(a, half), this.and(b, mask), this.shr(b, half)];
    const low = this.#plain("i64.mul", al, bl);
    const middle = this.#plain("i64.add", this.#plain("i64.mul", ah, bl), this.shr(low, half));
    const other = this.#plain("i64.add", this.#plain("i64.mul", al, bh), this.and(middle, mask));
    const high = this.#plain(
      "i64.add",
      this.#plain("i64.add", this.#plain("i64.mul", ah, bh), this.shr(middle, half)),
      this.shr(other, half),
    );
    if (!signed) return high;
    const top = this.int(63);
    const corrected = this.#plain("i64.sub", high, this.and(this.#plain("i64.shr_s", a, top), b));
    return this.#plain("i64.sub", corrected, this.and(this.#plain("i64.shr_s", b, top), a));
  }
  and(a: Int, b: Int): Int {
    return this.#plain("i64.and", a, b, Math.min(nodeOf(a).bits, nodeOf(b).bits));
  }
  or(a: Int, b: Int): Int {
    return this.#plain("i64.or", a, b, this.#bits(a, b));
  }
  xor(a: Int, b: Int): Int {
    return this.#plain("i64.xor", a, b, this.#bits(a, b));
  }
  not(a: Int, size?: Size): Int {
    return this.#plain("i64.xor", a, this.int(maskOf(size ?? this.size)), Math.max(nodeOf(a).bits, size ?? this.size));
  }
  neg(a: Int, size?: Size): Int {
    return this.#sized("i64.sub", this.int(0), a, size);
  }
  shl(a: Int, count: Int, size?: Size): Int {
    return this.#sized("i64.shl", a, count, size);
  }
  shr(a: Int, count: Int): Int {
    return this.#plain("i64.shr_u", a, count, nodeOf(a).bits);
  }
  sar(a: Int, count: Int, size?: Size): Int {
    const width = size ?? this.size;
    return asInt(this.#fits(nodeOf(this.#plain("i64.shr_s", this.signExtend(a, width), count)), width));
  }
  div(a: Int, b: Int, signed: boolean): Int {
    return asInt(this.#faulting(signed ? "i64.div_s" : "i64.div_u", a, b));
  }
  rem(a: Int, b: Int, signed: boolean): Int {
    return asInt(this.#faulting(signed ? "i64.rem_s" : "i64.rem_u", a, b));
  }
  /** Division traps on zero, so that it must not move into or out of the row's guards. */
  #faulting(name: string, a: Int, b: Int): Node {
    const result = makeNode("i64", [], () => undefined);
    this.#effect([nodeOf(a), nodeOf(b)], NOTHING, (c) => c.op(name), result);
    return result;
  }
  signExtend(a: Int, from: Size): Int {
    const node = nodeOf(a);
    if (from === 64) return a;
    return asInt(this.#operation(`i64.extend${from}_s`, [node]));
  }
  truncate(a: Int, to: Size): Int {
    return asInt(this.#fits(nodeOf(a), to));
  }
  countLeadingZeros(a: Int): Int {
    return asInt(this.#operation("i64.clz", [nodeOf(a)], 7));
  }
  countTrailingZeros(a: Int): Int {
    return asInt(this.#operation("i64.ctz", [nodeOf(a)], 7));
  }
  popCount(a: Int): Int {
    return asInt(this.#operation("i64.popcnt", [nodeOf(a)], 7));
  }
  byteSwap(a: Int, size: 32 | 64): Int {
    const bytes = (x: Int): Int => {
      const mask = this.int(0x00ff_00ff_00ff_00ffn);
      const eight = this.int(8);
      return this.or(this.and(this.shr(x, eight), mask), this.#plain("i64.shl", this.and(x, mask), eight));
    };
    const words = (x: Int): Int => {
      const mask = this.int(0x0000_ffff_0000_ffffn);
      const sixteen = this.int(16);
      return this.or(this.and(this.shr(x, sixteen), mask), this.#plain("i64.shl", this.and(x, mask), sixteen));
    };
    const halves = words(bytes(a));
    if (size === 32) return this.truncate(halves, 32);
    return this.#plain("i64.rotl", halves, this.int(32));
  }

  // ---- Comparison and logic ----

  eq(a: Int, b: Int): Bool {
    return asBool(this.#operation("i64.eq", [nodeOf(a), nodeOf(b)]));
  }
  ne(a: Int, b: Int): Bool {
    return asBool(this.#operation("i64.ne", [nodeOf(a), nodeOf(b)]));
  }
  ltu(a: Int, b: Int): Bool {
    return asBool(this.#operation("i64.lt_u", [nodeOf(a), nodeOf(b)]));
  }
  lts(a: Int, b: Int): Bool {
    return asBool(this.#operation("i64.lt_s", [nodeOf(a), nodeOf(b)]));
  }
  isZero(a: Int): Bool {
    return asBool(this.#operation("i64.eqz", [nodeOf(a)]));
  }
  bit(a: Int, index: number | Int): Bool {
    const count = typeof index === "number" ? this.int(index) : index;
    return asBool(this.#operation("i32.wrap_i64", [nodeOf(this.and(this.shr(a, count), this.int(1)))]));
  }
  not1(a: Bool): Bool {
    return asBool(this.#operation("i32.eqz", [nodeOf(a)]));
  }
  and1(a: Bool, b: Bool): Bool {
    return asBool(this.#operation("i32.and", [nodeOf(a), nodeOf(b)]));
  }
  or1(a: Bool, b: Bool): Bool {
    return asBool(this.#operation("i32.or", [nodeOf(a), nodeOf(b)]));
  }
  xor1(a: Bool, b: Bool): Bool {
    return asBool(this.#operation("i32.xor", [nodeOf(a), nodeOf(b)]));
  }
  toInt(a: Bool): Int {
    return asInt(this.#operation("i64.extend_i32_u", [nodeOf(a)], 32));
  }
  select(condition: Bool, whenTrue: Int, whenFalse: Int): Int {
    const args = [nodeOf(whenTrue), nodeOf(whenFalse), nodeOf(condition)];
    return asInt(this.#value("i64", args, (c) => c.op("select"), { bits: this.#bits(whenTrue, whenFalse) }));
  }

  // ---- Flags (flags.ts describes the lazy form) ----

  #setFlagWord(offset: number, value: Node): void {
    const store = offset === state.flagAux ? "i64.store32" : "i64.store";
    this.#effect([this.#constant32(0), value], FLAGS, (c) => c.memory(store, offset));
  }
  #toTop(vector: Int, size: Size): Int {
    return size === 64 ? vector : this.#plain("i64.shl", vector, this.int(64 - size));
  }
  recordFlags(
    operation: "add" | "adc" | "sub" | "sbb" | "inc" | "dec" | "logic",
    a: Int,
    b: Int,
    result: Int,
    size: Size = this.size,
  ): void {
    const ones = this.int(-1);
    const invert = (x: Int): Int => this.#plain("i64.xor", x, ones);
    if (operation === "logic") {
      this.#setFlagWord(state.flagResult, nodeOf(this.signExtend(result, size)));
      this.#setFlagWord(state.flagCarry, this.#constant(0n));
      this.#setFlagWord(state.flagAux, nodeOf(this.and(result, this.int(16))));
      return;
    }
    let carry: Int;
    if (operation === "add" || operation === "adc") {
      carry = this.#toTop(this.or(this.and(a, b), this.and(this.or(a, b), invert(result))), size);
    } else if (operation === "sub" || operation === "sbb") {
      const inverse = invert(a);
      carry = this.#toTop(this.or(this.and(inverse, b), this.and(this.or(inverse, b), result)), size);
    } else {
      // CF stays; OF is a sign change out of the largest or the smallest number.
      const overflow = operation === "inc" ? this.and(invert(a), result) : this.and(a, invert(result));
      const old = this.state(state.flagCarry, 64);
      const sign = this.int(SIGN);
      const difference = this.and(this.xor(old, this.#toTop(overflow, size)), sign);
      carry = this.or(this.and(old, sign), this.shr(difference, this.int(1)));
    }
    this.#setFlagWord(state.flagCarry, nodeOf(carry));
    this.#setFlagWord(state.flagResult, nodeOf(this.signExtend(result, size)));
    // INC and DEC have b = 1, which has no bit 4.
    const aux = operation === "inc" || operation === "dec" ? a : this.xor(a, b);
    this.#setFlagWord(state.flagAux, nodeOf(this.and(aux, this.int(16))));
  }
  recordShiftFlags(result: Int, carry: Bool, overflow: Bool, size: Size = this.size): void {
    this.#setFlagWord(state.flagResult, nodeOf(this.signExtend(result, size)));
    this.#setFlagWord(state.flagCarry, nodeOf(this.#carryWord(carry, overflow)));
    this.#setFlagWord(state.flagAux, nodeOf(this.and(result, this.int(16))));
  }
  /** Bit 63 is CF, bit 63 xor bit 62 is OF. */
  #carryWord(carry: Bool, overflow: Bool): Int {
    const top = this.#plain("i64.shl", this.toInt(carry), this.int(63));
    const next = this.#plain("i64.shl", this.toInt(this.xor1(carry, overflow)), this.int(62));
    return this.or(top, next);
  }
  #negative(a: Int): Bool {
    return this.lts(a, this.int(0));
  }
  #signWord(): Int {
    return this.xor(this.state(state.flagResult, 64), this.#plain("i64.shl", this.state(state.flagAux, 32), this.int(32)));
  }
  #overflowWord(): Int {
    const carry = this.state(state.flagCarry, 64);
    return this.xor(carry, this.#plain("i64.shl", carry, this.int(1)));
  }
  flag(name: FlagName): Bool {
    switch (name) {
      case "CF":
        return this.#negative(this.state(state.flagCarry, 64));
      case "OF":
        return this.#negative(this.#overflowWord());
      case "ZF":
        return this.isZero(this.state(state.flagResult, 64));
      case "SF":
        return this.#negative(this.#signWord());
      case "AF":
        return this.bit(this.xor(this.state(state.flagResult, 64), this.state(state.flagAux, 32)), 4);
      case "PF": {
        const byte = this.and(this.xor(this.state(state.flagResult, 8), this.state(state.flagAux + 1, 8)), this.int(255));
        return this.not1(this.bit(this.popCount(byte), 0));
      }
    }
  }
  setFlag(name: FlagName, value: Bool): void {
    if (name === "CF" || name === "OF") {
      const carry = name === "CF" ? value : this.flag("CF");
      const overflow = name === "OF" ? value : this.flag("OF");
      this.#setFlagWord(state.flagCarry, nodeOf(this.#carryWord(carry, overflow)));
      return;
    }
    const { common } = this.#target;
    const mask = 1 << RFLAGS_BITS[name];
    const position = this.#operation("i32.shl", [nodeOf(value), this.#constant32(RFLAGS_BITS[name])]);
    this.#effect([position], FLAGS, (c) => c.call(common.getFlags).i32(~mask).op("i32.and").op("i32.or").call(common.setFlags));
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
          return this.#negative(this.xor(this.#signWord(), this.#overflowWord()));
        case 7:
          return this.or1(this.flag("ZF"), this.#negative(this.xor(this.#signWord(), this.#overflowWord())));
        default:
          return this.#fail(`no condition ${code}`);
      }
    };
    return (code & 1) === 0 ? base() : this.not1(base());
  }
  formCondition(): Bool {
    const code = this.#variant.condition;
    return code === undefined ? this.#fail("the form has no condition") : this.condition(code);
  }
  readFlags(): Int {
    const { common } = this.#target;
    const arithmetic = this.#value("i32", [], (c) => c.call(common.getFlags), { reads: FLAGS });
    return this.or(asInt(this.#operation("i64.extend_i32_u", [arithmetic], 32)), this.state(state.systemFlags, 32));
  }
  writeArithmeticFlags(value: Int): void {
    const { common } = this.#target;
    this.#effect([this.#operation("i32.wrap_i64", [nodeOf(value)])], FLAGS, (c) => c.call(common.setFlags));
    const rest = this.and(this.state(state.systemFlags, 32), this.int(0xffff_ffff & ~DIRECTION));
    this.setState(state.systemFlags, 32, this.or(rest, this.and(value, this.int(DIRECTION))));
  }

  // ---- Control ----

  #branch(body: () => void): Statement[] {
    const outer = this.#statements;
    const fields = new Map(this.#fields);
    const addresses = new Map(this.#addresses);
    const places = new Map(this.#places);
    this.#statements = [];
    body();
    const inner = this.#statements;
    this.#statements = outer;
    // What was computed inside the branch is not there outside of it.
    restore(this.#fields, fields);
    restore(this.#addresses, addresses);
    restore(this.#places, places);
    return inner;
  }
  if(condition: Bool, whenTrue: () => void, whenFalse?: () => void): void {
    const onTrue = this.#branch(whenTrue);
    const onFalse = whenFalse === undefined ? [] : this.#branch(whenFalse);
    this.#statements.push({ kind: "if", condition: nodeOf(condition), whenTrue: onTrue, whenFalse: onFalse });
  }
  loopWhile(body: () => Bool): void {
    let condition: Bool | undefined;
    const statements = this.#branch(() => {
      condition = body();
    });
    this.#statements.push({ kind: "loop", body: statements, condition: nodeOf(condition as unknown as Bool) });
  }
  #advance(): void {
    const { main, pc } = this.#target;
    this.#effect([], NOTHING, (c) => {
      c.get(pc).i32(OP_BYTES).op("i32.add");
      if (main === undefined) c.return();
      else c.set(pc).br(main.dispatch);
    });
  }
  /** Leaves for the block at an RIP that is on the stack. */
  #goto(c: Code, scope: Scope): void {
    const { main } = this.#target;
    if (main !== undefined) {
      c.set(main.rip).br(main.lookup);
      return;
    }
    const rip = scope.temporary("i64");
    c.set(rip).i32(0).get(rip).memory("i64.store", state.rip).i32(0).return();
    scope.release("i64", rip);
  }
  /** Leaves for the block at `rip`, through the running block's link field `link`. */
  #follow(rip: Node, link: number): void {
    const { main } = this.#target;
    this.#effect([rip], NOTHING, (c, scope) => {
      if (main === undefined) {
        this.#goto(c, scope);
        return;
      }
      c.set(main.rip);
      c.loadAt("i32.load", state.blockStart).i32(link).op("i32.add").set(main.link).br(main.follow);
    });
  }
  jump(target: Int): void {
    this.traits.endsBlock = true;
    this.#effect([nodeOf(target)], NOTHING, (c, scope) => this.#goto(c, scope));
  }
  #relativeTarget(): Node {
    const target = this.#operation("i64.add", [this.#stateNode(state.blockRip, 64), nodeOf(this.immediate())]);
    return this.#fits(target, this.size === 8 ? this.#fail("a relative jump needs an operand size") : this.size);
  }
  jumpRelative(): void {
    this.traits.endsBlock = true;
    this.#follow(this.#relativeTarget(), block.taken);
  }
  branchRelative(condition: Bool): void {
    this.traits.endsBlock = true;
    this.if(
      condition,
      () => this.#follow(this.#relativeTarget(), block.taken),
      () => this.#follow(nodeOf(this.nextRip()), block.next),
    );
  }
  nextRip(): Int {
    const length = this.#field(op.length, "i64.load8_u", 8);
    const offset = this.#operation("i64.add", [this.#field(op.ripOffset, "i64.load16_u", 16), length], 17);
    const next = this.#operation("i64.add", [this.#stateNode(state.blockRip, 64), offset]);
    if (this.size === 64) return asInt(next);
    const width = this.#operation("i64.sub", [this.#constant(64n), this.#stateNode(state.codeSize, 32)]);
    return this.and(asInt(next), asInt(this.#operation("i64.shr_u", [this.#constant(-1n), width])));
  }
  repeat(): void {
    const { main, pc, common } = this.#target;
    this.#effect([], EVERYTHING, (c, scope) => {
      // Each round costs one instruction of the budget. With none left, RIP stays here and the rest of the block is given back.
      const budget = scope.temporary("i32");
      c.loadAt("i32.load", state.budget).tee(budget).i32(0).op("i32.gt_s").if();
      c.i32(0).get(budget).i32(1).op("i32.sub").memory("i32.store", state.budget);
      if (main === undefined) c.get(pc).return();
      else c.br(main.dispatch);
      c.end();
      c.get(pc).call(common.sync);
      c.get(pc).call(common.refund);
      c.loadAt("i64.load", state.rip);
      scope.release("i32", budget);
      this.#goto(c, scope);
    });
  }
  endBlock(): void {
    this.#effect([], NOTHING, (c) => c.call(this.#target.common.settle));
    this.jump(this.nextRip());
  }
  raise(
    vector: "#DE" | "#DB" | "#BP" | "#OF" | "#BR" | "#UD" | "#NM" | "#SS" | "#GP" | "#AC" | "#MF" | "#XM",
    error = -1,
  ): void {
    const { common, pc } = this.#target;
    const number = Vector[vector.slice(1) as keyof typeof Vector];
    this.#effect([], EVERYTHING, (c) => {
      c.get(pc).call(common.sync);
      c.i32(number)
        .i32(number === 12 || number === 13 || number === 17 ? Math.max(error, 0) : error)
        .call(common.imports.raise);
      c.op("unreachable");
    });
  }
  raiseIf(
    condition: Bool,
    vector: "#DE" | "#UD" | "#NM" | "#SS" | "#GP" | "#MF" | "#XM" | "#BR" | "#OF",
    error?: number,
  ): void {
    this.if(condition, () => this.raise(vector, error));
  }

  // ---- Helpers ----

  #argument(value: number | Int | Bool): Node {
    if (typeof value === "number") return this.#constant32(value);
    const node = nodeOf(value);
    return node.type === "i64" ? this.#operation("i32.wrap_i64", [node]) : node;
  }
  #call(name: string, args: readonly (number | Int | Bool)[], result: Node | undefined): void {
    const { common, pc } = this.#target;
    if (args.length > 4) this.#fail(`helper ${name} takes at most four arguments`);
    const index = this.#target.helper(name);
    const nodes = args.map((value) => this.#argument(value));
    while (nodes.length < 4) nodes.push(this.#constant32(0));
    this.#effect(nodes, EVERYTHING, (c) => c.get(pc).call(common.sync).call(index), result);
  }
  helper(name: string, ...args: (number | Int | Bool)[]): Bool {
    const result = makeNode("i32", [], () => undefined);
    this.#call(name, args, result);
    return asBool(result);
  }
  helperThenEndBlock(name: string, ...args: (number | Int | Bool)[]): void {
    this.traits.endsBlock = true;
    this.#call(
      name,
      args,
      makeNode("i32", [], () => undefined),
    );
    this.#effect([], NOTHING, (c, scope) => {
      c.call(this.#target.common.settle).loadAt("i64.load", state.nextRip);
      this.#goto(c, scope);
    });
  }
  low32(a: Int): Bool {
    return asBool(this.#operation("i32.wrap_i64", [nodeOf(a)]));
  }
  fromI32(a: Bool): Int {
    return asInt(this.#operation("i64.extend_i32_u", [nodeOf(a)], 32));
  }

  // ---- Vectors and floating point ----

  vec(operation: string, ...args: Value[]): Vec {
    return asVec(this.#operation(operation, args.map(nodeOf)));
  }
  lane(operation: string, laneIndex: number, ...args: Value[]): Value {
    const emit = (c: Code): void => {
      c.lane(operation, laneIndex);
    };
    return this.#value(resultType(operation), args.map(nodeOf), emit) as unknown as Value;
  }
  shuffle(a: Vec, b: Vec, lanes: readonly number[]): Vec {
    return asVec(this.#value("v128", [nodeOf(a), nodeOf(b)], (c) => c.shuffle(lanes)));
  }
  vecConst(bytes: readonly number[]): Vec {
    return asVec(this.#value("v128", [], (c) => c.v128(bytes)));
  }
  scalar(operation: string, ...args: Value[]): Value {
    return this.#operation(operation, args.map(nodeOf)) as unknown as Value;
  }

  // ---- Checks of the row ----

  #require(requirement: "fpu" | "sse" | "mmx" | "cpl0" | "protected" | "waitFpu"): void {
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
        const noFxsr = this.xor(this.and(this.state(state.cr4, 32), this.int(CR4_OSFXSR)), this.int(CR4_OSFXSR));
        const bad = this.or(this.and(cr0, this.int(CR0_EM | CR0_TS)), noFxsr);
        this.if(this.ne(bad, this.int(0)), () => {
          this.raiseIf(this.or1(anyOf(cr0, CR0_EM), this.ne(noFxsr, this.int(0))), "#UD");
          this.raise("#NM");
        });
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

const SCRATCH_END = 0x5000;

function restore<K, V>(into: Map<K, V>, from: Map<K, V>): void {
  into.clear();
  for (const [key, value] of from) into.set(key, value);
}

function sizeBytes(bits: number): number {
  return bits / 8;
}

function integerSize(bits: number): Size {
  if (bits === 8 || bits === 16 || bits === 32 || bits === 64) return bits;
  throw new Error(`no integer of ${bits} bits`);
}
