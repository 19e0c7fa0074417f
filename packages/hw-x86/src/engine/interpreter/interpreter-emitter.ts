/** The emitter of the interpreter: operands are found at run time through the operation's record. */
import { state } from "../cpu-state.ts";
import type { Bool, Emitter, FlagName, Int, Size, Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { withOperand } from "../node-emitter.ts";
import { asBool, asInt, asVec, constant32, constant64, integerSize, LOAD64, nodeOf } from "../node-values.ts";
import { block, OP_BYTES, op } from "../operation.ts";
import { Vector } from "../system/bits.ts";
import type { Code } from "../wasm/code.ts";
import { sizeBytes } from "./interpreter-memory.ts";
import { InterpreterVectors } from "./interpreter-vectors.ts";
import { EVERYTHING, FLAGS, GENERAL, makeResult, NOTHING, type Node, OTHER, type Scope, schedule, VECTOR } from "./schedule.ts";

const RFLAGS_BITS: Readonly<Record<FlagName, number>> = { CF: 0, PF: 2, AF: 4, ZF: 6, SF: 7, OF: 11 };
const DIRECTION = 0x400;
const SIGN = 1n << 63n;

export class InterpreterEmitter extends InterpreterVectors implements Emitter {
  /** Emits the whole handler: the row's checks, its semantics and the way to the next operation. */
  emitHandler(): void {
    const { instruction, operands } = this.variant;
    for (const requirement of instruction.requires ?? []) this.require(requirement);
    instruction.semantics(this, operands);
    this.#advance();
    schedule(this.statements, this.target.fn);
  }

  // ---- Operands ----

  read(operand: FormOperand): Int {
    const access = this.access(operand);
    switch (access.kind) {
      case "gpr":
        return asInt(this.loadState(this.fieldOf(access), access.size, GENERAL));
      case "fixedGpr":
        return this.reg(access.register, access.size);
      case "memory":
        return asInt(this.loadGuest(this.linear(operand, sizeBytes(access.size)), integerSize(access.size)));
      case "immediate":
      case "farPointer":
        return this.viewedImmediate(operand);
      case "constant":
        return this.int(access.value);
      case "xmm":
      case "mm":
        return asInt(
          this.loadState(this.fieldOf(access), integerSize(Math.min(access.size, 64)), access.kind === "xmm" ? VECTOR : OTHER),
        );
      case "segmentRegister":
      case "controlRegister":
      case "debugRegister":
      case "stackIndex":
        return asInt(this.field(op[access.field], "i64.load16_u", 16));
      case "relative":
        return this.fail("a relative operand has no value; use jumpRelative or branchRelative");
    }
  }
  readForWrite(operand: FormOperand): Int {
    const access = this.access(operand);
    if (access.kind !== "memory") return this.read(operand);
    const size = integerSize(access.size);
    const bytes = size / 8;
    const linear = this.linear(operand, bytes, true);
    const place = makeResult("i32");
    if (this.target.main !== undefined) this.effect([linear], NOTHING, (c, scope) => this.probe(c, scope, true, bytes), place);
    else {
      const { common } = this.target;
      this.effect([this.pc, linear, constant32(bytes)], NOTHING, (c) => c.call(common.rmwProbe), place);
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
        this.storeState(this.fieldOf(access), access.size, nodeOf(value), GENERAL);
        return;
      case "fixedGpr":
        this.setReg(access.register, access.size, value);
        return;
      case "memory": {
        const size = integerSize(access.size);
        const place = this.places[operand.position];
        if (place === undefined) this.storeGuest(this.linear(operand, size / 8, true), size, nodeOf(value));
        else this.storePlace(place, size, nodeOf(value));
        return;
      }
      case "mm":
        this.effect([this.fieldOf(access), nodeOf(value)], OTHER, (c) => c.memory("i64.store", 0));
        this.markMmx(access);
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
    const { flat, noIndex, common } = this.target;
    if (flat) {
      const base = this.value("i64", [this.field(op.base, "i32.load16_u")], (c) => c.memory("i64.load", 0), GENERAL);
      let sum = this.operation("i64.add", [base, this.field(op.displacement, "i64.load32_s")]);
      if (!noIndex) {
        const index = this.value("i64", [this.field(op.index, "i32.load16_u")], (c) => c.memory("i64.load", 0), GENERAL);
        sum = this.operation("i64.add", [this.operation("i64.shl", [index, this.field(op.scale, "i64.load8_u", 8)]), sum]);
      }
      node = this.operation("i64.and", [sum, this.stateNode(state.flatMask, 64)]);
    } else node = this.value("i64", [this.pc], (c) => c.call(common.effectiveAddress), GENERAL);
    this.addresses = withOperand(this.addresses, operand.position, node);
    return asInt(node);
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
    const { common } = this.target;
    const mask = 1 << RFLAGS_BITS[name];
    const position = this.operation("i32.shl", [nodeOf(value), constant32(RFLAGS_BITS[name])]);
    this.effect([position], FLAGS, (c) => c.call(common.getFlags).i32(~mask).op("i32.and").op("i32.or").call(common.setFlags));
  }
  protected lessThan(): Bool {
    return this.wordLessThan();
  }
  readFlags(): Int {
    const { common } = this.target;
    const arithmetic = this.value("i32", [], (c) => c.call(common.getFlags), FLAGS);
    return this.or(asInt(this.operation("i64.extend_i32_u", [arithmetic], 32)), this.state(state.systemFlags, 32));
  }
  recordComparison(flags: Int): void {
    const { common } = this.target;
    this.effect([this.operation("i32.wrap_i64", [nodeOf(flags)])], FLAGS, (c) => c.call(common.setFlags));
  }
  mayBeRounded(operation: number, bits: 32 | 64, lanes: number, a: Vec, b: Vec, result: Vec): Bool {
    const { common } = this.target;
    const kind = [operation, bits === 64 ? 1 : 0, lanes].map((value) => constant32(value));
    return asBool(this.value("i32", [...kind, ...[a, b, result].map(nodeOf)], (c) => c.call(common.mayBeRounded)));
  }
  fusedMultiplyAdd(bits: 32 | 64, lanes: number, a: Vec, b: Vec, c: Vec): Vec {
    const { common } = this.target;
    const kind = [bits === 64 ? 1 : 0, lanes].map((value) => constant32(value));
    return asVec(this.value("v128", [...kind, ...[a, b, c].map(nodeOf)], (code) => code.call(common.fusedMultiplyAdd), OTHER));
  }
  writeArithmeticFlags(value: Int): void {
    const { common } = this.target;
    this.effect([this.operation("i32.wrap_i64", [nodeOf(value)])], FLAGS, (c) => c.call(common.setFlags));
    const rest = this.and(this.state(state.systemFlags, 32), this.int(0xffff_ffff & ~DIRECTION));
    this.setState(state.systemFlags, 32, this.or(rest, this.and(value, this.int(DIRECTION))));
  }

  // ---- Control ----

  #advance(): void {
    const { main, pc } = this.target;
    this.effect([], NOTHING, (c) => {
      c.get(pc).i32(OP_BYTES).op("i32.add");
      if (main === undefined) c.return();
      else c.set(pc).br(main.dispatch);
    });
  }
  /** Leaves for the block at an RIP that is on the stack. */
  #goto(c: Code, scope: Scope): void {
    const { main } = this.target;
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
    const { main } = this.target;
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
    const target = this.operation("i64.add", [this.stateNode(state.blockRip, 64), nodeOf(this.immediate())]);
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
    const length = this.field(op.length, "i64.load8_u", 8);
    const offset = this.operation("i64.add", [this.field(op.ripOffset, "i64.load16_u", 16), length], 17);
    const next = this.operation("i64.add", [this.stateNode(state.blockRip, 64), offset]);
    if (this.size === 64) return asInt(next);
    const width = this.operation("i64.sub", [constant64(64n), this.stateNode(state.codeSize, 32)]);
    return this.and(asInt(next), asInt(this.operation("i64.shr_u", [constant64(-1n), width])));
  }
  repeat(): void {
    const { main, pc, common } = this.target;
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
    const { common, pc } = this.target;
    const done = this.runNode(kind, kind === "move" ? common.moveRun : common.storeRun, (c) => c.get(pc));
    this.if(done, () => this.finishRun(kind), otherwise);
  }
  endBlock(): void {
    this.effect([], NOTHING, (c) => c.call(this.target.common.settle));
    this.jump(this.nextRip());
  }
  raise(
    vector: "#DE" | "#DB" | "#BP" | "#OF" | "#BR" | "#UD" | "#NM" | "#SS" | "#GP" | "#AC" | "#MF" | "#XM",
    error = -1,
  ): void {
    const { common, pc } = this.target;
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
    const { common, pc } = this.target;
    if (args.length > 4) this.fail(`helper ${name} takes at most four arguments`);
    const index = this.target.helper(name);
    const nodes = args.map((value) => this.argument(value));
    while (nodes.length < 4) nodes.push(constant32(0));
    this.effect(nodes, EVERYTHING, (c) => c.get(pc).call(common.sync).call(index), result);
  }
  #callsInLowerHalf = false;
  override inHalves<V>(body: (half: 0 | 1) => V): readonly [V, V] {
    this.#callsInLowerHalf = false;
    const results = super.inHalves(body);
    if (this.#callsInLowerHalf) {
      this.seldom(this.ne(this.state(state.pendingFlags, 32), this.int(0)), () => this.helper("sseSettle"));
    }
    return results;
  }
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
      c.call(this.target.common.settle).loadAt("i64.load", state.nextRip);
      this.#goto(c, scope);
    });
  }
}
