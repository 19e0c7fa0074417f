/**
 * The part of an emitter that does not depend on where operands lie, beside arithmetic: branches, flags, views of vector operands, and the
 * checks that rows ask for. The interpreter's emitter finds operands at run time, the translator's knows them.
 */
import { ArithmeticEmitter } from "./arithmetic-emitter.ts";
import { RAX, RCX, RDI, RSI, state } from "./cpu-state.ts";
import type { Bool, ConditionCode, Doubt, Emitter, FlagName, Int, Size, Value, Variable, Vec } from "./emitter.ts";
import type { FormOperand, Requirement } from "./instruction.ts";
import { EVERYTHING, makeResult, type Node, type Statement } from "./interpreter/schedule.ts";
import { asBool, asVec, constant32, nodeOf } from "./node-values.ts";
import type { StateFact, VectorFact } from "./translator/facts.ts";
import type { Code } from "./wasm/code.ts";
import { resultType } from "./wasm/opcodes.ts";

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

type ByOperand<T> = readonly (T | undefined)[];
export function withOperand<T>(all: ByOperand<T>, position: number, value: T): ByOperand<T> {
  const changed = [...all];
  changed[position] = value;
  return changed;
}

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

export abstract class NodeEmitter extends ArithmeticEmitter implements Omit<Emitter, Rest> {
  // By operand position; replaced and never changed, so that the end of a branch goes back to what was there before it
  /** Effective addresses of memory operands. */
  protected addresses: ByOperand<Node> = [];
  /** Bank offsets that `readForWrite` found. */
  protected places: ByOperand<Node> = [];

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

  // ---- Strings ----

  /** Pushes whether the run was done, by calling `run`; `pushOperation` pushes the operation's record. */
  protected runNode(kind: "move" | "store", run: number, pushOperation: (c: Code) => void): Bool {
    const done = makeResult("i32");
    const other = kind === "move" ? this.reg(RSI, 64) : this.reg(RAX, this.size as Size);
    const [count, to, last] = [this.reg(RCX, 64), this.reg(RDI, 64), other].map(nodeOf);
    const operation = this.value("i32", [], pushOperation);
    const bytes = constant32(this.size / 8);
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
