/**
 * Where the arithmetic flags are at a place of a region. After most instructions they need no code: what was compared, or the
 * result, is still in a register, so that a condition compares registers and an exit computes the flags from them.
 *
 * Operands that are in no register any more are pinned: copied to locals of their own. Where paths with different flags meet, the
 * frame's locals `flagKind`, `flagFirst` and so on say what they are, as flag-kinds.ts has it; "settling" puts them there.
 */
import type { Code } from "../wasm/code.ts";
import { FlagSource, OWN_CARRY, OWN_OVERFLOW, sourceOf } from "./flag-kinds.ts";
import type { RegionFrame } from "./region.ts";

export type FlagOperand =
  /** The frame's pin for this operand. */
  | { readonly in: "pin" }
  /** A general register as it is now; bits above the operand size are not the operand's. */
  | { readonly in: "register"; readonly index: number }
  | { readonly in: "constant"; readonly value: bigint };

export interface FlagState {
  /** As flag-kinds.ts has it, or UNKNOWN_FLAGS: the locals say. */
  readonly kind: number;
  /** Of sums and differences without carry-in, two of the three are enough. */
  readonly first: FlagOperand | undefined;
  readonly second: FlagOperand | undefined;
  readonly result: FlagOperand | undefined;
  /** The flags are as described where local `flagKind` is MIXED, and settled elsewhere. */
  readonly isMixed: boolean;
}

export const UNKNOWN_FLAGS = -1;
/** Value of `flagKind`: the flags are where the block's FlagState says. */
const MIXED = -1;

export function flagState(kind: number, operands: Partial<Pick<FlagState, "first" | "second" | "result">> = {}): FlagState {
  return { kind, first: operands.first, second: operands.second, result: operands.result, isMixed: false };
}
export const SETTLED: FlagState = flagState(UNKNOWN_FLAGS);
/** The words in the state block are right. */
export const WORDS: FlagState = flagState(FlagSource.words);

const PIN: FlagOperand = { in: "pin" };

export { PIN };

function isSameOperand(a: FlagOperand | undefined, b: FlagOperand | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  if (a.in === "register") return b.in === "register" && a.index === b.index;
  if (a.in === "constant") return b.in === "constant" && a.value === b.value;
  return b.in === "pin";
}
/** They describe the same flags, where they do. */
function isSameDescription(a: FlagState, b: FlagState): boolean {
  return (
    a === b ||
    (a.kind === b.kind &&
      isSameOperand(a.first, b.first) &&
      isSameOperand(a.second, b.second) &&
      isSameOperand(a.result, b.result))
  );
}
export function isSameState(a: FlagState, b: FlagState): boolean {
  return a.isMixed === b.isMixed && isSameDescription(a, b);
}

/** One that all of these can be turned into by `emitTransition`. */
export function meetFlags(states: readonly FlagState[]): FlagState {
  const [first] = states;
  if (first === undefined) return SETTLED;
  if (states.every((other) => isSameState(first, other))) return first;
  return mixedFlags(states);
}
/** The same where more may come, whatever they are. */
export function mixedFlags(states: readonly FlagState[]): FlagState {
  const described = states.find(({ kind }) => kind !== UNKNOWN_FLAGS && kind !== FlagSource.words);
  return described === undefined ? SETTLED : { ...described, isMixed: true };
}

/** Puts the flags into the frame's locals. */
export function emitSettle(c: Code, frame: RegionFrame, state: FlagState): void {
  const { kind, first, second, result } = state;
  if (kind === UNKNOWN_FLAGS) return;
  if (state.isMixed) {
    c.get(frame.flagKind).i32(MIXED).op("i32.eq");
    c.if();
  }
  const push = (operand: FlagOperand | undefined, pin: number): void => {
    if (operand === undefined) throw new Error("an operand of the flags is nowhere");
    if (operand.in === "register") c.get(frame.gpr[operand.index] as number);
    else if (operand.in === "constant") c.i64(operand.value);
    else c.get(pin);
  };
  const pushFirst = (): void => push(first, frame.pinFirst);
  const pushSecond = (): void => push(second, frame.pinSecond);
  const pushResult = (): void => push(result, frame.pinResult);
  const source = sourceOf(kind);
  switch (source) {
    case FlagSource.words:
      break;
    case FlagSource.rflags:
      pushFirst();
      c.set(frame.flagFirst);
      break;
    case FlagSource.result:
      pushResult();
      c.set(frame.flagResult);
      break;
    default: {
      const isSum = source === FlagSource.add || source === FlagSource.increment;
      if (first !== undefined) pushFirst();
      else {
        pushResult();
        pushSecond();
        c.op(isSum ? "i64.sub" : "i64.add");
      }
      c.set(frame.flagFirst);
      pushSecond();
      c.set(frame.flagSecond);
      if (result !== undefined) pushResult();
      else {
        c.get(frame.flagFirst)
          .get(frame.flagSecond)
          .op(isSum ? "i64.add" : "i64.sub");
      }
      c.set(frame.flagResult);
    }
  }
  if ((kind & OWN_CARRY) !== 0) c.get(frame.pinCarry).set(frame.flagCarry);
  if ((kind & OWN_OVERFLOW) !== 0) c.get(frame.pinOverflow).set(frame.flagOverflow);
  c.i32(kind).set(frame.flagKind);
  if (state.isMixed) c.end();
}

/** On the way from a block whose flags are `from` to one that expects `to`. */
export function emitTransition(c: Code, frame: RegionFrame, from: FlagState, to: FlagState): void {
  if (isSameState(from, to)) return;
  if (to.isMixed && !from.isMixed && isSameDescription(from, to)) {
    c.i32(MIXED).set(frame.flagKind);
    return;
  }
  if (!to.isMixed && to.kind !== UNKNOWN_FLAGS) throw new Error("a block does not have the flags that its predecessors leave");
  emitSettle(c, frame, from);
}
