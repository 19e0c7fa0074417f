/**
 * The part of the region emitter that deals with arithmetic flags. flag-state.ts says how they are kept. It also knows which values
 * the general registers hold, since flags are read from there.
 */

import type { Relation } from "../arithmetic-emitter.ts";
import { state } from "../cpu-state.ts";
import type { Variant } from "../decoder/variant.ts";
import type { Bool, ConditionCode, FlagName, Int, Size } from "../emitter.ts";
import { FLAGS, makeResult, NO_ARGUMENTS, type Node, type Scope, type Statement } from "../interpreter/schedule.ts";
import { NodeEmitter } from "../node-emitter.ts";
import { asBool, asInt, constant32, nodeOf } from "../node-values.ts";
import type { Code } from "../wasm/code.ts";
import {
  CARRY_IN,
  emitBitsAbove,
  FlagSource,
  kindOf,
  OWN_CARRY,
  OWN_OVERFLOW,
  SOURCE_BITS,
  sizeOfKind,
  sourceOf,
} from "./flag-kinds.ts";
import {
  emitSettle,
  type FlagOperand,
  type FlagState,
  flagState,
  isSameState,
  PIN,
  SETTLED,
  UNKNOWN_FLAGS,
  WORDS,
} from "./flag-state.ts";
import type { RegionFrame } from "./region.ts";

const DIRECTION = 0x400;
const RFLAGS_BITS: Readonly<Record<FlagName, number>> = { CF: 0, PF: 2, AF: 4, ZF: 6, SF: 7, OF: 11 };

/** By condition code, without its lowest bit, which inverts: how the operands of a comparison relate. */
const RELATIONS: readonly (Relation | undefined)[] = [undefined, "lt_u", "eq", "le_u", undefined, undefined, "lt_s", "le_s"];

/** A value that a general register holds in so many of its low bits. */
interface Held {
  readonly value: Node;
  index: number;
  size: Size;
}

export abstract class FlagEmitter extends NodeEmitter {
  protected readonly frame: RegionFrame;
  /** Where the flags are behind what was emitted so far. */
  protected flags: FlagState;
  /** Branches of the row around what is being emitted. */
  protected depth = 0;
  protected hasWritten = false;
  protected readsFlags = false;
  protected writesAllFlags = false;
  /** Statements that do nothing but write flags. */
  protected readonly flagWrites: Statement[] = [];
  /** Of these, those that are for nothing when the row writes all flags. */
  protected readonly releases: Statement[] = [];
  #isRecording = false;
  #held: Held[] = [];

  constructor(variant: Variant, frame: RegionFrame, flags: FlagState) {
    super(variant);
    this.frame = frame;
    this.flags = flags;
  }

  protected abstract readRegister(index: number, size: Size): Node;

  // ---- What registers hold ----

  protected noteHeld(value: Node, index: number, size: Size): void {
    if (value.constant !== undefined) return;
    const known = this.#held.find((held) => held.value === value);
    if (known === undefined) this.#held.push({ value, index, size });
    else {
      known.index = index;
      known.size = size;
    }
  }
  protected forgetHeld(): void {
    this.#held = [];
  }
  /** The register is about to be written: what the flags have there is pinned. */
  protected releaseRegister(index: number): void {
    this.#forgetRegister(index);
    const { first, second, result } = this.flags;
    const isThere = (operand: FlagOperand | undefined): boolean => operand?.in === "register" && operand.index === index;
    if (!isThere(first) && !isThere(second) && !isThere(result)) return;
    const known = this.flagWrites.length;
    if (this.flags.isMixed) this.settleInLocals();
    else this.#pinAll(isThere);
    this.releases.push(...this.flagWrites.slice(known));
    // What was read to be pinned is held no longer
    this.#forgetRegister(index);
  }
  #forgetRegister(index: number): void {
    if (this.#held.some((held) => held.index === index)) this.#held = this.#held.filter((held) => held.index !== index);
  }
  #pinAll(isThere: (operand: FlagOperand | undefined) => boolean): void {
    const { kind, first, second, result } = this.flags;
    const size = sizeOfKind(kind);
    this.#flagsOnly(false, () => {
      const pinned = (operand: FlagOperand | undefined, pin: number): FlagOperand | undefined => {
        if (operand?.in !== "register" || !isThere(operand)) return operand;
        this.effect([this.readRegister(operand.index, size)], FLAGS, (c) => c.set(pin));
        return PIN;
      };
      const { pinFirst, pinSecond, pinResult } = this.frame;
      this.flags = flagState(kind, {
        first: pinned(first, pinFirst),
        second: pinned(second, pinSecond),
        result: pinned(result, pinResult),
      });
    });
  }

  // ---- Recording ----

  protected override effect(
    args: readonly Node[],
    writes: number,
    emit: (code: Code, scope: Scope) => void,
    result?: Node,
  ): void {
    super.effect(args, writes, emit, result);
    if (this.#isRecording && this.depth === 0) this.flagWrites.push(this.statements[this.statements.length - 1] as Statement);
  }
  /** What `body` emits does nothing but change flags. */
  #flagsOnly(all: boolean, body: () => void): void {
    this.hasWritten = true;
    const outer = this.#isRecording;
    this.#isRecording = true;
    body();
    this.#isRecording = outer;
    if (all && this.depth === 0) this.writesAllFlags = true;
  }
  #reading(): void {
    this.releases.length = 0;
    if (!this.#isRecording) this.readsFlags = true;
  }
  /** Where the value is found again later, or undefined. */
  #locate(value: Node, size: Size): FlagOperand | undefined {
    if (value.constant !== undefined) return { in: "constant", value: value.constant };
    const held = this.#held.find((other) => other.value === value);
    return held !== undefined && held.size >= size ? { in: "register", index: held.index } : undefined;
  }
  #pin(value: Node, pin: number, size: Size): FlagOperand {
    const found = this.#locate(value, size);
    if (found !== undefined) return found;
    this.effect([this.fits(value, size)], FLAGS, (c) => c.set(pin));
    return PIN;
  }
  #pinBit(value: Bool, pin: number): void {
    this.effect([nodeOf(value)], FLAGS, (c) => c.set(pin));
  }

  recordFlags(
    operation: "add" | "adc" | "sub" | "sbb" | "inc" | "dec" | "logic",
    a: Int,
    b: Int,
    result: Int,
    size: Size = this.size,
  ): void {
    const { pinFirst, pinSecond, pinResult, pinCarry } = this.frame;
    const first = nodeOf(a);
    const second = nodeOf(b);
    const outcome = nodeOf(result);
    if (operation === "inc" || operation === "dec") {
      this.#flagsOnly(false, () => {
        // CF stays, in a pin of its own
        this.#pinBit(this.flag("CF"), pinCarry);
        const kind = kindOf(operation === "inc" ? FlagSource.increment : FlagSource.decrement, size) | OWN_CARRY;
        this.flags = flagState(kind, {
          second: { in: "constant", value: 1n },
          result: this.#pin(outcome, pinResult, size),
        });
      });
      return;
    }
    this.#flagsOnly(true, () => {
      if (operation === "logic") {
        const [left, right] = [this.#locate(first, size), this.#locate(second, size)];
        // TEST of a register with itself
        const isSame = left?.in === "register" && right?.in === "register" && left.index === right.index;
        const isTest = isSame && outcome.name === "i64.and";
        this.flags = flagState(kindOf(FlagSource.result, size), {
          result: isTest ? left : this.#pin(outcome, pinResult, size),
        });
        return;
      }
      const source = operation === "add" || operation === "adc" ? FlagSource.add : FlagSource.subtract;
      if (operation === "adc" || operation === "sbb") {
        this.flags = flagState(kindOf(source, size) | CARRY_IN, {
          first: this.#pin(first, pinFirst, size),
          second: this.#pin(second, pinSecond, size),
          result: this.#pin(outcome, pinResult, size),
        });
        return;
      }
      const sum = this.#locate(outcome, size);
      const left = this.#locate(first, size);
      this.flags = flagState(kindOf(source, size), {
        first: left ?? (sum === undefined ? this.#pin(first, pinFirst, size) : undefined),
        second: this.#pin(second, pinSecond, size),
        result: sum,
      });
    });
  }
  recordShiftFlags(result: Int, carry: Bool, overflow: Bool, size: Size = this.size): void {
    const { pinResult, pinCarry, pinOverflow } = this.frame;
    this.#flagsOnly(true, () => {
      this.effect([nodeOf(carry), nodeOf(overflow)], FLAGS, (c) => c.set(pinOverflow).set(pinCarry));
      this.flags = flagState(kindOf(FlagSource.result, size) | OWN_CARRY | OWN_OVERFLOW, {
        result: this.#pin(nodeOf(result), pinResult, size),
      });
    });
  }
  setFlag(name: FlagName, value: Bool): void {
    const { flagKind, flagCarry, flagOverflow, pinCarry, pinOverflow, support } = this.frame;
    if (name === "CF" || name === "OF") {
      const own = name === "CF" ? OWN_CARRY : OWN_OVERFLOW;
      this.#flagsOnly(false, () => {
        if (this.flags.kind === UNKNOWN_FLAGS || this.flags.isMixed) {
          this.settleInLocals();
          const local = name === "CF" ? flagCarry : flagOverflow;
          this.effect([nodeOf(value)], FLAGS, (c) => c.set(local).get(flagKind).i32(own).op("i32.or").set(flagKind));
        } else {
          this.#pinBit(value, name === "CF" ? pinCarry : pinOverflow);
          this.flags = { ...this.flags, kind: this.flags.kind | own };
        }
      });
      return;
    }
    this.#settleInWords();
    this.hasWritten = true;
    const mask = 1 << RFLAGS_BITS[name];
    const position = this.operation("i32.shl", [nodeOf(value), constant32(RFLAGS_BITS[name])]);
    this.effect([position], FLAGS, (c) =>
      c.call(support.getFlags).i32(~mask).op("i32.and").op("i32.or").call(support.setFlags),
    );
  }
  recordComparison(flags: Int): void {
    this.#flagsOnly(true, () => {
      this.effect([nodeOf(flags)], FLAGS, (c) => c.set(this.frame.pinFirst));
      this.flags = flagState(FlagSource.rflags << 2, { first: PIN });
    });
  }
  writeArithmeticFlags(value: Int): void {
    this.recordComparison(value);
    const rest = this.and(this.state(state.systemFlags, 32), this.int(0xffff_ffff & ~DIRECTION));
    this.setState(state.systemFlags, 32, this.or(rest, this.and(value, this.int(DIRECTION))));
  }
  abstract setState(offset: number, size: Size, value: Int): void;

  // ---- Settling ----

  /** Flags that paths differ in are settled on each of them. */
  protected meetBranches(whenTrue: Statement[], afterTrue: FlagState, whenFalse: Statement[], afterFalse: FlagState): void {
    this.flags = afterFalse;
    if (isSameState(afterTrue, afterFalse)) return;
    for (const [statements, flags] of [
      [whenTrue, afterTrue],
      [whenFalse, afterFalse],
    ] as const) {
      statements.push({
        kind: "effect",
        args: [],
        writes: FLAGS,
        result: undefined,
        emit: (c) => emitSettle(c, this.frame, flags),
      });
    }
    this.flags = SETTLED;
  }
  /** Makes the frame's locals say what the flags are. */
  protected settleInLocals(): void {
    const { flags } = this;
    if (flags.kind === UNKNOWN_FLAGS) return;
    this.#flagsOnly(false, () => this.effect(NO_ARGUMENTS, FLAGS, (c) => emitSettle(c, this.frame, flags)));
    this.flags = SETTLED;
  }
  #saveFlags(c: Code): void {
    const { flagKind, flagFirst, flagSecond, flagResult, flagCarry, flagOverflow, support } = this.frame;
    c.get(flagKind).get(flagFirst).get(flagSecond).get(flagResult).get(flagCarry).get(flagOverflow).call(support.saveFlags);
    c.i32(FlagSource.words).set(flagKind);
  }
  /** Makes the words in the state block right, and the flags known. */
  #settleInWords(): void {
    this.#reading();
    const { flags } = this;
    if (flags.kind === FlagSource.words && !flags.isMixed) return;
    this.effect(NO_ARGUMENTS, FLAGS, (c) => {
      emitSettle(c, this.frame, flags);
      this.#saveFlags(c);
    });
    this.flags = WORDS;
  }
  /** CF of flags that are known at run time only. Loops that count with INC or DEC have it in a local after the first round. */
  #unknownCarry(): Bool {
    const { flags } = this;
    const carry = makeResult("i32");
    this.effect(
      [],
      FLAGS,
      (c) => {
        emitSettle(c, this.frame, flags);
        c.get(this.frame.flagKind).i32(OWN_CARRY).op("i32.and");
        c.if("i32");
        c.get(this.frame.flagCarry).else();
        this.#carryOfDifference(c);
        c.else();
        this.#saveFlags(c);
        c.loadAt("i32.load", state.flagCarry + 4)
          .i32(31)
          .op("i32.shr_u")
          .end()
          .end();
      },
      carry,
    );
    this.flags = SETTLED;
    return asBool(carry);
  }

  /** Opens an `if (result i32)`: the settled flags are of a difference, the most frequent; then its borrow is on the stack. */
  #carryOfDifference(c: Code): void {
    const { flagKind, flagFirst, flagSecond } = this.frame;
    const shifted = (local: number): void => {
      emitBitsAbove(c.get(local), flagKind).op("i64.shl");
    };
    c.get(flagKind)
      .i32(CARRY_IN | SOURCE_BITS)
      .op("i32.and")
      .i32(kindOf(FlagSource.subtract, 8))
      .op("i32.eq")
      .if("i32");
    shifted(flagFirst);
    shifted(flagSecond);
    c.op("i64.lt_u");
  }

  // ---- Reading ----

  #operand(operand: FlagOperand | undefined, pin: number, size: Size): Int | undefined {
    if (operand === undefined) return undefined;
    if (operand.in === "constant") return this.truncate(this.int(operand.value), size);
    if (operand.in === "register") return asInt(this.readRegister(operand.index, size));
    return asInt(this.value("i64", NO_ARGUMENTS, (c) => c.get(pin), FLAGS, size));
  }
  /** Operands and result of the operation that the flags are from. */
  #operands(): { first: () => Int; second: () => Int; result: () => Int } {
    const { kind, first, second, result } = this.flags;
    const { pinFirst, pinSecond, pinResult } = this.frame;
    const source = sourceOf(kind);
    const size = source === FlagSource.rflags ? 64 : sizeOfKind(kind);
    const isSum = source === FlagSource.add || source === FlagSource.increment;
    const known = (value: Int | undefined): Int => value ?? this.fail("an operand of the flags is nowhere");
    const knownSecond = (): Int => known(this.#operand(second, pinSecond, size));
    return {
      first: () => {
        const there = this.#operand(first, pinFirst, size);
        if (there !== undefined) return there;
        const outcome = known(this.#operand(result, pinResult, size));
        return isSum ? this.sub(outcome, knownSecond(), size) : this.add(outcome, knownSecond(), size);
      },
      second: knownSecond,
      result: () => {
        const there = this.#operand(result, pinResult, size);
        if (there !== undefined) return there;
        const start = known(this.#operand(first, pinFirst, size));
        return isSum ? this.add(start, knownSecond(), size) : this.sub(start, knownSecond(), size);
      },
    };
  }
  #pinnedBit(pin: number): Bool {
    return asBool(this.value("i32", NO_ARGUMENTS, (c) => c.get(pin), FLAGS));
  }
  #isKnown(): boolean {
    return this.flags.kind !== UNKNOWN_FLAGS && !this.flags.isMixed;
  }

  flag(name: FlagName): Bool {
    this.#reading();
    if (!this.#isKnown()) {
      if (name === "CF") return this.#unknownCarry();
      this.#settleInWords();
    }
    const { kind, result: resultPlace } = this.flags;
    if (name === "CF" && (kind & OWN_CARRY) !== 0) return this.#pinnedBit(this.frame.pinCarry);
    if (name === "OF" && (kind & OWN_OVERFLOW) !== 0) return this.#pinnedBit(this.frame.pinOverflow);
    const source = sourceOf(kind);
    if (source === FlagSource.words) return this.wordFlag(name);
    const { first, second, result } = this.#operands();
    if (source === FlagSource.rflags) return this.bit(first(), RFLAGS_BITS[name]);
    const size = sizeOfKind(kind);
    const isSum = source === FlagSource.add || source === FlagSource.subtract;
    const hasCarryIn = (kind & CARRY_IN) !== 0;
    const top = (vector: Int): Bool => this.bit(vector, size - 1);
    const invert = (value: Int): Int => this.not(value, size);
    switch (name) {
      case "ZF":
        if (source === FlagSource.subtract && !hasCarryIn && resultPlace === undefined) return this.eq(first(), second());
        return size === 32 ? this.not1(asBool(this.low(result()))) : this.isZero(result());
      case "SF":
        return this.isNegative(result(), size);
      case "PF":
        return this.not1(this.bit(this.popCount(this.and(result(), this.int(255))), 0));
      case "AF":
        if (source === FlagSource.result) return this.bool(false);
        return this.bit(this.xor(isSum ? this.xor(first(), second()) : first(), result()), 4);
      case "CF": {
        if (source === FlagSource.result) return this.bool(false);
        if (!isSum) return this.fail("flags of INC and DEC have CF of their own");
        if (!hasCarryIn) {
          // A sum is less than either operand when it carries
          return source === FlagSource.add ? this.ltu(result(), second()) : this.ltu(first(), second());
        }
        const [a, b, r] = [first(), second(), result()];
        if (source === FlagSource.add) return top(this.or(this.and(a, b), this.and(this.or(a, b), invert(r))));
        return top(this.or(this.and(invert(a), b), this.and(this.or(invert(a), b), r)));
      }
      case "OF": {
        if (source === FlagSource.result) return this.bool(false);
        const [a, r] = [first(), result()];
        if (source === FlagSource.increment) return top(this.and(invert(a), r));
        if (source === FlagSource.decrement) return top(this.and(a, invert(r)));
        const b = second();
        if (source === FlagSource.add) return top(this.and(this.xor(a, r), this.xor(b, r)));
        return top(this.and(this.xor(a, b), this.xor(a, r)));
      }
    }
  }
  /** After a comparison every condition but those on a sign, parity or overflow is one of its operands. */
  override condition(code: ConditionCode): Bool {
    const { kind } = this.flags;
    const size = sizeOfKind(kind);
    const relation = RELATIONS[code >> 1];
    if (!this.#isKnown() || kind !== kindOf(FlagSource.subtract, size) || relation === undefined) return super.condition(code);
    // Where there is a difference, it is compared with zero, which the host's subtraction does along the way
    if (relation === "eq" && this.flags.result !== undefined) return super.condition(code);
    this.#reading();
    const { first, second } = this.#operands();
    const holds = this.compare(relation, first(), second(), size);
    return (code & 1) === 0 ? holds : this.not1(holds);
  }
  protected lessThan(): Bool {
    this.#reading();
    if (!this.#isKnown()) this.#settleInWords();
    const { kind } = this.flags;
    const size = sizeOfKind(kind);
    if (kind === kindOf(FlagSource.subtract, size)) {
      const { first, second } = this.#operands();
      return this.compare("lt_s", first(), second(), size);
    }
    if (kind === FlagSource.words) return this.wordLessThan();
    return this.xor1(this.flag("SF"), this.flag("OF"));
  }
  readFlags(): Int {
    this.#reading();
    let arithmetic: Int;
    if (this.flags.kind === FlagSource.rflags << 2 && !this.flags.isMixed) {
      arithmetic = this.and(this.#operands().first(), this.int(0x8d5));
    } else {
      this.#settleInWords();
      const flags = this.value("i32", NO_ARGUMENTS, (c) => c.call(this.frame.support.getFlags), FLAGS);
      arithmetic = asInt(this.operation("i64.extend_i32_u", [flags], 32));
    }
    return this.or(arithmetic, this.state(state.systemFlags, 32));
  }
}
