/** The emitter of the interpreter: operands are found at run time through the operation's record. */
import { DS, ES, gprOffset, SEG_EFFECTIVE_BASE, segmentOffset, state } from "../cpu-state.ts";
import type { Variant } from "../decoder/variant.ts";
import type { Bool, Emitter, FlagName, Int, Size, Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { NodeEmitter, withOperand } from "../node-emitter.ts";
import { asBool, asInt, asVec, constant32, constant64, integerSize, LOAD64, nodeOf, STORE64 } from "../node-values.ts";
import { block, OP_BYTES, op } from "../operation.ts";
import { Vector } from "../system/bits.ts";
import type { Code } from "../wasm/code.ts";
import { resultType } from "../wasm/opcodes.ts";
import { emitProbe } from "./memory-code.ts";
import {
  EVERYTHING,
  FLAGS,
  GENERAL,
  makeNode,
  makeResult,
  NOTHING,
  type Node,
  OTHER,
  type Scope,
  type Statement,
  schedule,
  VECTOR,
} from "./schedule.ts";
import type { HandlerTarget, HandlerTraits } from "./target.ts";

const RFLAGS_BITS: Readonly<Record<FlagName, number>> = { CF: 0, PF: 2, AF: 4, ZF: 6, SF: 7, OF: 11 };
const DIRECTION = 0x400;
const SIGN = 1n << 63n;

function groupOf(offset: number): number {
  if (offset >= state.gpr && offset < state.gpr + 128) return GENERAL;
  if (offset >= state.flagResult && offset < state.flagAux + 4) return FLAGS;
  if (offset >= state.xmm && offset < state.ymmHigh + 256) return VECTOR;
  return OTHER;
}

export class InterpreterEmitter extends NodeEmitter implements Emitter {
  readonly traits: HandlerTraits = { endsBlock: false, usesMemory: false, usesAddress: false };
  readonly #target: HandlerTarget;
  readonly #pc: Node;
  #fields = new Map<string, Node>();

  constructor(variant: Variant, target: HandlerTarget) {
    super(variant);
    this.#target = target;
    this.#pc = makeNode("i32", [], (c) => c.get(target.pc), NOTHING, 64, -1n);
  }

  protected override branch(body: () => void): Statement[] {
    const before = this.#fields;
    this.#fields = new Map(before);
    const statements = super.branch(body);
    this.#fields = before;
    return statements;
  }

  /** Emits the whole handler: the row's checks, its semantics and the way to the next operation. */
  emitHandler(): void {
    const { instruction, operands } = this.variant;
    for (const requirement of instruction.requires ?? []) this.require(requirement);
    instruction.semantics(this, operands);
    this.#advance();
    schedule(this.statements, this.#target.fn);
  }

  /** A field of the operation's record; never changes while the operation runs. */
  #field(offset: number, load: string, bits = 64): Node {
    const key = `${offset}:${load}`;
    let node = this.#fields.get(key);
    if (node === undefined) {
      node = this.value(resultType(load), [this.#pc], (c) => c.memory(load, offset), NOTHING, bits);
      this.#fields.set(key, node);
    }
    return node;
  }
  #fieldOf(access: { field: "a" | "b" | "c" | "immediate" }): Node {
    return this.#field(op[access.field], "i32.load16_u");
  }

  // ---- Operands ----

  read(operand: FormOperand): Int {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr":
        return asInt(this.#loadState(this.#fieldOf(access), access.size, GENERAL));
      case "fixedGpr":
        return this.reg(access.register, access.size);
      case "memory":
        return asInt(this.#loadGuest(this.#linear(operand, sizeBytes(access.size)), integerSize(access.size)));
      case "immediate":
      case "farPointer":
        return this.viewedImmediate(operand);
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
        return this.fail("a relative operand has no value; use jumpRelative or branchRelative");
    }
  }
  readForWrite(operand: FormOperand): Int {
    const access = this.access(operand);
    if (access.kind !== "memory") return this.read(operand);
    const size = integerSize(access.size);
    const bytes = size / 8;
    const linear = this.#linear(operand, bytes, true);
    const place = makeResult("i32");
    if (this.#target.main !== undefined)
      this.effect([linear], NOTHING, (c, scope) => this.#probe(c, scope, true, bytes), place);
    else {
      const { common } = this.#target;
      this.effect([this.#pc, linear, constant32(bytes)], NOTHING, (c) => c.call(common.rmwProbe), place);
    }
    this.places = withOperand(this.places, operand.position, place);
    const value = makeResult("i64", size);
    this.effect([place], NOTHING, (c) => c.memory(LOAD64[size], 0), value);
    return asInt(value);
  }
  write(operand: FormOperand, value: Int): void {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr":
        this.#storeState(this.#fieldOf(access), access.size, nodeOf(value), GENERAL);
        return;
      case "fixedGpr":
        this.setReg(access.register, access.size, value);
        return;
      case "memory": {
        const size = integerSize(access.size);
        const place = this.places[operand.position];
        if (place === undefined) this.#storeGuest(this.#linear(operand, size / 8, true), size, nodeOf(value));
        else this.#storePlace(place, size, nodeOf(value));
        return;
      }
      case "mm":
        this.effect([this.#fieldOf(access), nodeOf(value)], OTHER, (c) => c.memory("i64.store", 0));
        this.#markMmx(access);
        return;
      default:
        this.fail(`cannot write operand ${operand.text}`);
    }
  }
  address(operand: FormOperand): Int {
    let node = this.addresses[operand.position];
    if (node !== undefined) return asInt(node);
    if (this.access(operand).kind !== "memory") this.fail(`${operand.text} is no memory operand here`);
    this.traits.usesAddress = true;
    this.traits.usesMemory = true;
    const { flat, noIndex, common } = this.#target;
    if (flat) {
      const base = this.value("i64", [this.#field(op.base, "i32.load16_u")], (c) => c.memory("i64.load", 0), GENERAL);
      let sum = this.operation("i64.add", [base, this.#field(op.displacement, "i64.load32_s")]);
      if (!noIndex) {
        const index = this.value("i64", [this.#field(op.index, "i32.load16_u")], (c) => c.memory("i64.load", 0), GENERAL);
        sum = this.operation("i64.add", [this.operation("i64.shl", [index, this.#field(op.scale, "i64.load8_u", 8)]), sum]);
      }
      node = this.operation("i64.and", [sum, this.#stateNode(state.flatMask, 64)]);
    } else node = this.value("i64", [this.#pc], (c) => c.call(common.effectiveAddress), GENERAL);
    this.addresses = withOperand(this.addresses, operand.position, node);
    return asInt(node);
  }

  // ---- Vector operands ----

  protected readVector(operand: FormOperand): Vec {
    const access = this.access(operand);
    switch (access.kind) {
      case "xmm":
        return asVec(this.value("v128", [this.#fieldOf(access)], (c) => c.memory("v128.load", 0), VECTOR));
      case "mm":
        return asVec(this.value("v128", [this.#fieldOf(access)], (c) => c.memory("v128.load64_zero", 0), OTHER));
      case "memory": {
        const load = ({ 32: "v128.load32_zero", 64: "v128.load64_zero", 128: "v128.load" } as Record<number, string>)[
          access.size
        ];
        if (load === undefined) return this.fail(`no vector of ${access.size} bits`);
        const linear = this.#linear(operand, access.size / 8);
        const { common } = this.#target;
        const place = makeResult("i32");
        if (this.#target.main !== undefined)
          this.effect([linear], NOTHING, (c, scope) => this.#probe(c, scope, false, access.size / 8), place);
        else this.effect([this.#pc, linear, constant32(access.size / 8)], NOTHING, (c) => c.call(common.readProbe), place);
        const value = makeResult("v128");
        this.effect([place], NOTHING, (c) => c.memory(load, 0), value);
        return asVec(value);
      }
      default:
        return this.fail(`${operand.text} is no vector`);
    }
  }
  protected readPair(operand: FormOperand): readonly [Vec, Vec] {
    const access = this.access(operand);
    let place: Node;
    let upper = 16;
    let reads = NOTHING;
    if (access.kind === "xmm") {
      place = this.#fieldOf(access);
      upper = UPPER_HALF;
      reads = VECTOR;
    } else {
      place = makeResult("i32");
      const { common } = this.#target;
      this.effect([this.#pc, this.#linear(operand, 32), constant32(32)], NOTHING, (c) => c.call(common.readProbe), place);
    }
    const part = (offset: number): Vec => {
      if (reads !== NOTHING) return asVec(this.value("v128", [place], (c) => c.memory("v128.load", offset), reads));
      const value = makeResult("v128");
      this.effect([place], NOTHING, (c) => c.memory("v128.load", offset), value);
      return asVec(value);
    };
    return [part(0), part(upper)];
  }
  writeHalves(operand: FormOperand, low: Vec, high: Vec): void {
    const access = this.access(operand);
    if (access.kind === "xmm") {
      const place = this.#fieldOf(access);
      this.effect([place, nodeOf(high)], VECTOR, (c) => c.memory("v128.store", UPPER_HALF));
      this.effect([place, nodeOf(low)], VECTOR, (c) => c.memory("v128.store", 0));
      return;
    }
    const linear = this.#linear(operand, 32, true);
    const { common } = this.#target;
    this.effect([this.#pc, linear, nodeOf(low), nodeOf(high)], NOTHING, (c) => c.call(common.writePair));
  }
  zeroVectors(which: "upper" | "all"): void {
    const zero = (first: number): void => {
      for (const file of which === "all" ? [state.xmm, state.ymmHigh] : [state.ymmHigh]) {
        this.effect([], VECTOR, (c) => {
          for (let i = first; i < first + 8; i++)
            c.i32(0)
              .v128(ZEROS)
              .memory("v128.store", file + i * 16);
        });
      }
    };
    zero(0);
    this.if(this.eq(this.state(state.codeSize, 32), this.int(64)), () => zero(8));
  }
  override inHalves<V>(body: (half: 0 | 1) => V): readonly [V, V] {
    this.#callsInLowerHalf = false;
    const results = super.inHalves(body);
    if (this.#callsInLowerHalf) {
      this.seldom(this.ne(this.state(state.pendingFlags, 32), this.int(0)), () => this.helper("sseSettle"));
    }
    return results;
  }
  protected writeVector(operand: FormOperand, value: Vec): void {
    const access = this.access(operand);
    switch (access.kind) {
      case "xmm":
        this.effect([this.#fieldOf(access), nodeOf(value)], VECTOR, (c) => c.memory("v128.store", 0));
        return;
      case "mm":
        this.effect(
          [this.#fieldOf(access), this.value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0))],
          OTHER,
          (c) => c.memory("i64.store", 0),
        );
        this.#markMmx(access);
        return;
      case "memory": {
        const linear = this.#linear(operand, access.size / 8, true);
        const { common } = this.#target;
        if (access.size === 128) {
          this.effect([this.#pc, linear, nodeOf(value)], NOTHING, (c) => c.call(common.write[4] as number));
        } else {
          const lane = this.value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0));
          this.#storeGuest(linear, integerSize(access.size), lane);
        }
        return;
      }
      default:
        this.fail(`${operand.text} is no vector`);
    }
  }
  protected checkAlignment(operand: FormOperand, bytes: number): void {
    const offset = this.operation("i64.add", [nodeOf(this.address(operand)), this.#segmentBase()]);
    this.raiseIf(this.ne(asInt(this.mask(offset, BigInt(bytes - 1))), this.int(0)), "#GP", 0);
  }

  // ---- Registers, memory, state ----

  reg(index: number, size: Size): Int {
    return asInt(this.#stateNode(gprOffset(index), size));
  }
  setReg(index: number, size: Size, value: Int): void {
    this.#storeState(constant32(gprOffset(index)), size, nodeOf(value), GENERAL);
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
    this.effect([this.#pc, linear, constant32(size / 8)], NOTHING, (c) => c.call(this.#target.common.rmwProbe).op("drop"));
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
    this.effect([this.#pc, linear, constant32(size / 8)], NOTHING, (c) => c.call(this.#target.common.rmwProbe).op("drop"));
  }
  addressMask(): Int {
    const width = this.operation("i64.sub", [constant64(64n), this.#field(op.addressSize, "i64.load8_u", 8)]);
    return asInt(this.operation("i64.shr_u", [constant64(-1n), width]));
  }
  immediate(): Int {
    return asInt(this.#field(op.immediate, "i64.load"));
  }
  state(offset: number, size: Size): Int {
    return asInt(this.#stateNode(offset, size));
  }
  setState(offset: number, size: Size, value: Int): void {
    this.effect([constant32(0), nodeOf(value)], groupOf(offset), (c) => c.memory(STORE64[size], offset));
  }

  #stateNode(offset: number, size: Size): Node {
    return this.value("i64", [constant32(0)], (c) => c.memory(LOAD64[size], offset), groupOf(offset), size);
  }
  #loadState(place: Node, size: Size, group: number): Node {
    return this.value("i64", [place], (c) => c.memory(LOAD64[size], 0), group, size);
  }
  #storeState(place: Node, size: Size, value: Node, group: number): void {
    // A 32-bit result clears the upper half of a 64-bit register.
    const stored = size === 32 ? this.fits(value, 32) : value;
    const store = size === 32 ? "i64.store" : STORE64[size];
    this.effect([place, stored], group, (c) => c.memory(store, 0));
  }
  #segmentBase(): Node {
    if (this.#target.flat) return constant64(0n);
    return this.value("i64", [this.#field(op.segment, "i32.load16_u")], (c) => c.memory("i64.load", SEG_EFFECTIVE_BASE), OTHER);
  }

  /** Linear address of a memory operand, limits checked. */
  #linear(operand: FormOperand, bytes: number, isWrite = false): Node {
    return this.#linearIn(this.#field(op.segment, "i32.load16_u"), nodeOf(this.address(operand)), bytes, isWrite);
  }
  #linearOf(segment: number, offset: Node, bytes: number, isWrite: boolean): Node {
    // Operands of 64 bits exist in 64-bit mode only, where these four segments are flat.
    if (this.size === 64 && segment >= ES && segment <= DS) return offset;
    return this.#linearIn(constant32(segmentOffset(segment)), offset, bytes, isWrite);
  }
  #linearIn(slot: Node, offset: Node, bytes: number, isWrite: boolean): Node {
    this.traits.usesMemory = true;
    if (this.#target.flat) return offset;
    const { common } = this.#target;
    const result = makeResult("i64");
    this.effect(
      [this.#pc, slot, offset, constant32(bytes)],
      NOTHING,
      (c) => c.call(isWrite ? common.linearWrite : common.linearRead),
      result,
    );
    return result;
  }

  #loadGuest(linear: Node, size: Size): Node {
    const bytes = size / 8;
    const value = makeResult("i64", size);
    if (this.#target.main !== undefined) {
      this.effect(
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
      this.effect(
        [this.#pc, linear, constant32(bytes)],
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
      this.effect([this.#pc, linear, value], NOTHING, (c) => c.call(slow));
      return;
    }
    this.effect([linear, value], NOTHING, (c, scope) => {
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
    this.effect([place, value], NOTHING, (c, scope) => {
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
    this.effect([this.#fieldOf(access)], OTHER, (c) => c.i32(0xffff).memory("i32.store16", 8));
  }

  // ---- Flags (flags.ts describes the lazy form) ----

  #setFlagWord(offset: number, value: Node): void {
    const store = offset === state.flagAux ? "i64.store32" : "i64.store";
    this.effect([constant32(0), value], FLAGS, (c) => c.memory(store, offset));
  }
  recordFlags(
    operation: "add" | "adc" | "sub" | "sbb" | "inc" | "dec" | "logic",
    a: Int,
    b: Int,
    result: Int,
    size: Size = this.size,
  ): void {
    const ones = this.int(-1);
    const invert = (x: Int): Int => this.plain("i64.xor", x, ones);
    if (operation === "logic") {
      this.#setFlagWord(state.flagResult, nodeOf(this.signExtend(result, size)));
      this.#setFlagWord(state.flagCarry, constant64(0n));
      this.#setFlagWord(state.flagAux, nodeOf(this.and(result, this.int(16))));
      return;
    }
    let carry: Int;
    if (operation === "add" || operation === "adc") {
      carry = this.toTop(this.or(this.and(a, b), this.and(this.or(a, b), invert(result))), size);
    } else if (operation === "sub" || operation === "sbb") {
      const inverse = invert(a);
      carry = this.toTop(this.or(this.and(inverse, b), this.and(this.or(inverse, b), result)), size);
    } else {
      // CF stays; OF is a sign change out of the largest or the smallest number.
      const overflow = operation === "inc" ? this.and(invert(a), result) : this.and(a, invert(result));
      const old = this.state(state.flagCarry, 64);
      const sign = this.int(SIGN);
      const difference = this.and(this.xor(old, this.toTop(overflow, size)), sign);
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
    const top = this.plain("i64.shl", this.toInt(carry), this.int(63));
    const next = this.plain("i64.shl", this.toInt(this.xor1(carry, overflow)), this.int(62));
    return this.or(top, next);
  }
  flag(name: FlagName): Bool {
    return this.wordFlag(name);
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
    const position = this.operation("i32.shl", [nodeOf(value), constant32(RFLAGS_BITS[name])]);
    this.effect([position], FLAGS, (c) => c.call(common.getFlags).i32(~mask).op("i32.and").op("i32.or").call(common.setFlags));
  }
  protected lessThan(): Bool {
    return this.wordLessThan();
  }
  readFlags(): Int {
    const { common } = this.#target;
    const arithmetic = this.value("i32", [], (c) => c.call(common.getFlags), FLAGS);
    return this.or(asInt(this.operation("i64.extend_i32_u", [arithmetic], 32)), this.state(state.systemFlags, 32));
  }
  recordComparison(flags: Int): void {
    const { common } = this.#target;
    this.effect([this.operation("i32.wrap_i64", [nodeOf(flags)])], FLAGS, (c) => c.call(common.setFlags));
  }
  mayBeRounded(operation: number, bits: 32 | 64, lanes: number, a: Vec, b: Vec, result: Vec): Bool {
    const { common } = this.#target;
    const kind = [operation, bits === 64 ? 1 : 0, lanes].map((value) => constant32(value));
    return asBool(this.value("i32", [...kind, ...[a, b, result].map(nodeOf)], (c) => c.call(common.mayBeRounded)));
  }
  fusedMultiplyAdd(bits: 32 | 64, lanes: number, a: Vec, b: Vec, c: Vec): Vec {
    const { common } = this.#target;
    const kind = [bits === 64 ? 1 : 0, lanes].map((value) => constant32(value));
    return asVec(this.value("v128", [...kind, ...[a, b, c].map(nodeOf)], (code) => code.call(common.fusedMultiplyAdd), OTHER));
  }
  writeArithmeticFlags(value: Int): void {
    const { common } = this.#target;
    this.effect([this.operation("i32.wrap_i64", [nodeOf(value)])], FLAGS, (c) => c.call(common.setFlags));
    const rest = this.and(this.state(state.systemFlags, 32), this.int(0xffff_ffff & ~DIRECTION));
    this.setState(state.systemFlags, 32, this.or(rest, this.and(value, this.int(DIRECTION))));
  }

  // ---- Control ----

  #advance(): void {
    const { main, pc } = this.#target;
    this.effect([], NOTHING, (c) => {
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
    this.effect([rip], NOTHING, (c, scope) => {
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
    this.effect([nodeOf(target)], NOTHING, (c, scope) => this.#goto(c, scope));
  }
  #relativeTarget(): Node {
    const target = this.operation("i64.add", [this.#stateNode(state.blockRip, 64), nodeOf(this.immediate())]);
    return this.fits(target, this.size === 8 ? this.fail("a relative jump needs an operand size") : this.size);
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
    const offset = this.operation("i64.add", [this.#field(op.ripOffset, "i64.load16_u", 16), length], 17);
    const next = this.operation("i64.add", [this.#stateNode(state.blockRip, 64), offset]);
    if (this.size === 64) return asInt(next);
    const width = this.operation("i64.sub", [constant64(64n), this.#stateNode(state.codeSize, 32)]);
    return this.and(asInt(next), asInt(this.operation("i64.shr_u", [constant64(-1n), width])));
  }
  repeat(): void {
    const { main, pc, common } = this.#target;
    this.effect([], EVERYTHING, (c, scope) => {
      // Each round costs one instruction of the budget. With none left, RIP stays here and the rest of the block is given back.
      const budget = scope.temporary("i32");
      c.i32(0).loadAt("i64.load", state.furtherIterations).i64(1n).op("i64.add").memory("i64.store", state.furtherIterations);
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
  stringRun(kind: "move" | "store", otherwise: () => void): void {
    const { common, pc } = this.#target;
    const done = this.runNode(kind, kind === "move" ? common.moveRun : common.storeRun, (c) => c.get(pc));
    this.if(done, () => this.finishRun(kind), otherwise);
  }
  endBlock(): void {
    this.effect([], NOTHING, (c) => c.call(this.#target.common.settle));
    this.jump(this.nextRip());
  }
  raise(
    vector: "#DE" | "#DB" | "#BP" | "#OF" | "#BR" | "#UD" | "#NM" | "#SS" | "#GP" | "#AC" | "#MF" | "#XM",
    error = -1,
  ): void {
    const { common, pc } = this.#target;
    const number = Vector[vector.slice(1) as keyof typeof Vector];
    this.effect([], EVERYTHING, (c) => {
      c.get(pc).call(common.sync);
      c.i32(number)
        .i32(number === 12 || number === 13 || number === 17 ? Math.max(error, 0) : error)
        .call(common.imports.raise);
      c.op("unreachable");
    });
  }
  // ---- Helpers ----

  protected argument(value: number | Int | Bool): Node {
    if (typeof value === "number") return constant32(value);
    const node = nodeOf(value);
    return node.type === "i64" ? this.operation("i32.wrap_i64", [node]) : node;
  }
  #call(name: string, args: readonly (number | Int | Bool)[], result: Node | undefined): void {
    const { common, pc } = this.#target;
    if (args.length > 4) this.fail(`helper ${name} takes at most four arguments`);
    const index = this.#target.helper(name);
    const nodes = args.map((value) => this.argument(value));
    while (nodes.length < 4) nodes.push(constant32(0));
    this.effect(nodes, EVERYTHING, (c) => c.get(pc).call(common.sync).call(index), result);
  }
  #callsInLowerHalf = false;
  helper(name: string, ...args: (number | Int | Bool)[]): Bool {
    const result = makeResult("i32");
    if (this.isLowerHalf) this.setState(state.isLowerHalf, 32, this.int(1));
    this.#call(name, args, result);
    if (this.isLowerHalf) this.setState(state.isLowerHalf, 32, this.int(0));
    this.#callsInLowerHalf ||= this.isLowerHalf;
    return asBool(result);
  }
  helperThenEndBlock(name: string, ...args: (number | Int | Bool)[]): void {
    this.traits.endsBlock = true;
    this.#call(name, args, makeResult("i32"));
    this.effect([], NOTHING, (c, scope) => {
      c.call(this.#target.common.settle).loadAt("i64.load", state.nextRip);
      this.#goto(c, scope);
    });
  }
}

const SCRATCH_END = 0x5000;
/** From a register's lower half to its upper one, in bytes. */
const UPPER_HALF = state.ymmHigh - state.xmm;
const ZEROS: readonly number[] = Array<number>(16).fill(0);

function sizeBytes(bits: number): number {
  return bits / 8;
}
