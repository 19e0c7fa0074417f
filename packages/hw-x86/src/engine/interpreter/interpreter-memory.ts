/** The part of the interpreter's emitter that reaches registers, state and guest memory, through the operation's record. */
import { DS, ES, gprOffset, SCRATCH, SCRATCH_BYTES, SEG_EFFECTIVE_BASE, segmentOffset, state } from "../cpu-state.ts";
import type { Variant } from "../decoder/variant.ts";
import type { Int, Size } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { NodeEmitter } from "../node-emitter.ts";
import { asInt, constant32, constant64, LOAD64, nodeOf, STORE64 } from "../node-values.ts";
import { op } from "../operation.ts";
import type { Code } from "../wasm/code.ts";
import { resultType } from "../wasm/opcodes.ts";
import { emitProbe } from "./memory-code.ts";
import {
  FLAGS,
  GENERAL,
  makeNode,
  makeResult,
  NOTHING,
  type Node,
  OTHER,
  type Scope,
  type Statement,
  VECTOR,
} from "./schedule.ts";
import type { HandlerTarget, HandlerTraits } from "./target.ts";

/** Places below it are in scratch memory, which `rmwFinish` is to copy out. */
const SCRATCH_END = SCRATCH + SCRATCH_BYTES;

function groupOf(offset: number): number {
  if (offset >= state.gpr && offset < state.gpr + 128) return GENERAL;
  if (offset >= state.flagResult && offset < state.flagAux + 4) return FLAGS;
  if (offset >= state.xmm && offset < state.ymmHigh + 256) return VECTOR;
  return OTHER;
}

export abstract class InterpreterMemory extends NodeEmitter {
  readonly traits: HandlerTraits = { endsBlock: false, usesMemory: false, usesAddress: false };
  readonly target: HandlerTarget;
  readonly pc: Node;
  #fields = new Map<string, Node>();

  constructor(variant: Variant, target: HandlerTarget) {
    super(variant);
    this.target = target;
    this.pc = makeNode("i32", [], (c) => c.get(target.pc), NOTHING, 64, -1n);
  }

  protected override branch(body: () => void): Statement[] {
    const before = this.#fields;
    this.#fields = new Map(before);
    const statements = super.branch(body);
    this.#fields = before;
    return statements;
  }

  abstract address(operand: FormOperand): Int;

  /** A field of the operation's record; never changes while the operation runs. */
  protected field(offset: number, load: string, bits = 64): Node {
    const key = `${offset}:${load}`;
    let node = this.#fields.get(key);
    if (node === undefined) {
      node = this.value(resultType(load), [this.pc], (c) => c.memory(load, offset), NOTHING, bits);
      this.#fields.set(key, node);
    }
    return node;
  }
  protected fieldOf(access: { field: "a" | "b" | "c" | "immediate" }): Node {
    return this.field(op[access.field], "i32.load16_u");
  }

  // ---- Registers, memory, state ----

  reg(index: number, size: Size): Int {
    return asInt(this.stateNode(gprOffset(index), size));
  }
  setReg(index: number, size: Size, value: Int): void {
    this.storeState(constant32(gprOffset(index)), size, nodeOf(value), GENERAL);
  }
  load(segment: number, offset: Int, size: Size): Int {
    return asInt(this.loadGuest(this.linearOf(segment, nodeOf(offset), size / 8, false), size));
  }
  store(segment: number, offset: Int, size: Size, value: Int): void {
    this.storeGuest(this.linearOf(segment, nodeOf(offset), size / 8, true), size, nodeOf(value));
  }
  loadDefault(offset: Int, size: Size): Int {
    return asInt(this.loadGuest(this.linearIn(this.field(op.segment, "i32.load16_u"), nodeOf(offset), size / 8, false), size));
  }
  probeStoreDefault(offset: Int, size: Size): void {
    const linear = this.linearIn(this.field(op.segment, "i32.load16_u"), nodeOf(offset), size / 8, true);
    this.effect([this.pc, linear, constant32(size / 8)], NOTHING, (c) => c.call(this.target.common.rmwProbe).op("drop"));
  }
  storeDefault(offset: Int, size: Size, value: Int): void {
    this.storeGuest(this.linearIn(this.field(op.segment, "i32.load16_u"), nodeOf(offset), size / 8, true), size, nodeOf(value));
  }
  probeStore(segment: number, offset: Int, size: Size): void {
    const linear = this.linearOf(segment, nodeOf(offset), size / 8, true);
    this.effect([this.pc, linear, constant32(size / 8)], NOTHING, (c) => c.call(this.target.common.rmwProbe).op("drop"));
  }
  addressMask(): Int {
    const width = this.operation("i64.sub", [constant64(64n), this.field(op.addressSize, "i64.load8_u", 8)]);
    return asInt(this.operation("i64.shr_u", [constant64(-1n), width]));
  }
  immediate(): Int {
    return asInt(this.field(op.immediate, "i64.load"));
  }
  state(offset: number, size: Size): Int {
    return asInt(this.stateNode(offset, size));
  }
  setState(offset: number, size: Size, value: Int): void {
    this.effect([constant32(0), nodeOf(value)], groupOf(offset), (c) => c.memory(STORE64[size], offset));
  }

  protected stateNode(offset: number, size: Size): Node {
    return this.value("i64", [constant32(0)], (c) => c.memory(LOAD64[size], offset), groupOf(offset), size);
  }
  protected loadState(place: Node, size: Size, group: number): Node {
    return this.value("i64", [place], (c) => c.memory(LOAD64[size], 0), group, size);
  }
  protected storeState(place: Node, size: Size, value: Node, group: number): void {
    // A 32-bit result clears the upper half of a 64-bit register.
    const stored = size === 32 ? this.fits(value, 32) : value;
    const store = size === 32 ? "i64.store" : STORE64[size];
    this.effect([place, stored], group, (c) => c.memory(store, 0));
  }
  protected segmentBase(): Node {
    if (this.target.flat) return constant64(0n);
    return this.value("i64", [this.field(op.segment, "i32.load16_u")], (c) => c.memory("i64.load", SEG_EFFECTIVE_BASE), OTHER);
  }

  /** Linear address of a memory operand, limits checked. */
  protected linear(operand: FormOperand, bytes: number, isWrite = false): Node {
    return this.linearIn(this.field(op.segment, "i32.load16_u"), nodeOf(this.address(operand)), bytes, isWrite);
  }
  protected linearOf(segment: number, offset: Node, bytes: number, isWrite: boolean): Node {
    // Operands of 64 bits exist in 64-bit mode only, where these four segments are flat.
    if (this.size === 64 && segment >= ES && segment <= DS) return offset;
    return this.linearIn(constant32(segmentOffset(segment)), offset, bytes, isWrite);
  }
  protected linearIn(slot: Node, offset: Node, bytes: number, isWrite: boolean): Node {
    this.traits.usesMemory = true;
    if (this.target.flat) return offset;
    const { common } = this.target;
    const result = makeResult("i64");
    this.effect(
      [this.pc, slot, offset, constant32(bytes)],
      NOTHING,
      (c) => c.call(isWrite ? common.linearWrite : common.linearRead),
      result,
    );
    return result;
  }

  protected loadGuest(linear: Node, size: Size): Node {
    const bytes = size / 8;
    const value = makeResult("i64", size);
    if (this.target.main !== undefined) {
      this.effect(
        [linear],
        NOTHING,
        (c, scope) => {
          this.probe(c, scope, false, bytes);
          c.memory(LOAD64[size], 0);
        },
        value,
      );
    } else {
      const { common } = this.target;
      this.effect(
        [this.pc, linear, constant32(bytes)],
        NOTHING,
        (c) => c.call(common.readProbe).memory(LOAD64[size], 0),
        value,
      );
    }
    return value;
  }
  protected storeGuest(linear: Node, size: Size, value: Node): void {
    const log = Math.log2(size / 8);
    const slow = this.target.common.write[log] as number;
    if (this.target.main === undefined) {
      this.effect([this.pc, linear, value], NOTHING, (c) => c.call(slow));
      return;
    }
    this.effect([linear, value], NOTHING, (c, scope) => {
      const held = scope.temporary("i64");
      const address = scope.temporary("i64");
      const place = scope.temporary("i32");
      c.set(held).set(address);
      emitProbe(c, this.target.fn, address, true, undefined, size / 8);
      c.i32(0).end().tee(place).if();
      c.get(place).get(held).memory(STORE64[size], 0);
      c.else();
      c.get(this.target.pc).get(address).get(held).call(slow);
      c.end();
      scope.release("i64", held);
      scope.release("i64", address);
      scope.release("i32", place);
    });
  }
  protected storePlace(place: Node, size: Size, value: Node): void {
    const { common } = this.target;
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
  protected probe(c: Code, scope: Scope, isWrite: boolean, bytes: number): void {
    const { common, fn, pc } = this.target;
    const address = scope.temporary("i64");
    c.set(address);
    emitProbe(c, fn, address, isWrite, undefined, bytes);
    c.get(pc)
      .get(address)
      .i32(bytes)
      .call(isWrite ? common.rmwProbe : common.readProbe);
    c.end();
    scope.release("i64", address);
  }
  protected markMmx(access: { field: "a" | "b" | "c" }): void {
    this.effect([this.fieldOf(access)], OTHER, (c) => c.i32(0xffff).memory("i32.store16", 8));
  }
}

export function sizeBytes(bits: number): number {
  return bits / 8;
}
