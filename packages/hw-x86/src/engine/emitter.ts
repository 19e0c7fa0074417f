/**
 * What an instruction's semantics are written against. The interpreter's generator and the translator each implement it.
 * Values are handles of generated code, not numbers. Integers (`Int`) are 64 bits wide in generated code and hold an operand
 * zero-extended from its size; every operation that can overflow takes the size and wraps to it. `Bool` is 0 or 1.
 *
 * Order: `read`, `load`, `reg`, `state` and everything that writes take effect in the order of the calls. A read or load may
 * fault, and then nothing written before it by the same instruction may be visible: read first, write memory next, write
 * registers and flags last.
 */
import type { FormOperand } from "./instruction.ts";
import type { StateFact, VectorFact } from "./translator/facts.ts";

declare const kind: unique symbol;
type Handle<K extends string> = { readonly [kind]: K };
export type Int = Handle<"i64">;
export type Bool = Handle<"i32">;
export type F32 = Handle<"f32">;
export type F64 = Handle<"f64">;
export type Vec = Handle<"v128">;
export type Value = Int | Bool | F32 | F64 | Vec;

/** Operand sizes in bits. */
export type Size = 8 | 16 | 32 | 64;

/** A variable of generated code, for loops and values that differ by branch. */
export interface Variable<V extends Value> {
  get(): V;
  set(value: V): void;
}

/** x86 condition codes in encoding order: O NO B AE E NE BE A S NS P NP L GE LE G are 0 to 15. */
export type ConditionCode = number;

/** Flags named by `recordFlags`; the rest keep their value. */
export type FlagName = "CF" | "PF" | "AF" | "ZF" | "SF" | "OF";

/** Conditions that must all hold; those behind the first are emitted for the case that it does. */
export type Doubt = readonly [() => Bool, ...(() => Bool)[]];

export interface Emitter {
  /** Operand size of the form being emitted, in bits: the size of "v" operands, 8 for forms on bytes. */
  readonly size: Size;
  /** Address size (bits) is a run-time property of the operation; use `addressMask`. */

  // Constants and variables
  int(value: number | bigint): Int;
  bool(value: boolean): Bool;
  variable(type: "i64", initial: Int): Variable<Int>;
  variable(type: "i32", initial: Bool): Variable<Bool>;
  variable(type: "v128", initial: Vec): Variable<Vec>;

  // Operands, as the form lists them. Memory operands compute their address once.
  /** Of a segment, control or debug register operand and of st(i) the value is the register's number. */
  read(operand: FormOperand): Int;
  /** Reads an operand that the same instruction writes after: faults as the write would. */
  readForWrite(operand: FormOperand): Int;
  write(operand: FormOperand, value: Int): void;
  /** Effective address (without segment base), wrapped to the address size, of a memory operand. */
  address(operand: FormOperand): Int;
  /** Size of an operand in bits. */
  sizeOf(operand: FormOperand): number;
  /** True while emitting the form of the instruction whose "r/m" operand is in memory. Known when emitting. */
  isMemory(operand: FormOperand): boolean;

  // Vector operands (xmm, xmm/m128, xmm/m64, xmm/m32, mm, mm/m64)
  readVec(operand: FormOperand): Vec;
  writeVec(operand: FormOperand, value: Vec): void;
  /** Raises #GP(0) when the memory operand is not aligned to its 16 bytes, or to `bytes`; nothing for registers. */
  checkAligned(operand: FormOperand, bytes?: number): void;
  /** The lower and the upper 128 bits of an operand of 256 (ymm, m256), in one access. */
  readHalves(operand: FormOperand): readonly [Vec, Vec];
  /** Writes 256 bits in one access: to memory, or to a register whatever its size in the form. */
  writeHalves(operand: FormOperand, low: Vec, high: Vec): void;
  /** What `body` makes of the lower and of the upper half. Floating-point exceptions of both are raised together. */
  inHalves<V>(body: (half: 0 | 1) => V): readonly [V, V];
  /** Zeroes the upper halves of all YMM registers that the mode has, or all of them. */
  zeroVectors(which: "upper" | "all"): void;

  // What earlier code has found out (translator/facts.ts): rows leave out checks of what is known, and say what theirs have shown.
  /** The integer's value where it is known while emitting: an immediate in a translated region, for one. */
  valueOf(integer: Int): bigint | undefined;
  /**
   * `fast`, unless one of the doubts holds, each a condition or several that must all hold, the cheapest first: then what `exact`
   * computes. The interpreter does that at once; a translated region, where doubts are to be rare, leaves it to the interpreter.
   * What the doubts deny is known afterwards, so `learn` and `learnOf` may say it.
   */
  unless<V extends Int | Vec>(doubts: readonly Doubt[], fast: V, exact: () => V): V;
  /**
   * Whether `result` may differ from the exact sum, difference, product, quotient or root of `lanes` numbers; see rounding-code.ts.
   * `operation` is one of SSE_OPERATION.
   */
  mayBeRounded(operation: number, bits: 32 | 64, lanes: number, a: Vec, b: Vec, result: Vec): Bool;
  /** a * b + c, rounded once, in the lowest `lanes`; NaN where the numbers have to be looked at. See fused-code.ts. */
  fusedMultiplyAdd(bits: 32 | 64, lanes: number, a: Vec, b: Vec, c: Vec): Vec;

  knows(fact: StateFact): boolean;
  learn(fact: StateFact): void;
  knowsOf(value: Vec, fact: VectorFact): boolean;
  learnOf(value: Vec, fact: VectorFact): void;

  // Registers by number, memory by segment and offset
  reg(index: number, size: Size): Int;
  /** Writing 32 bits clears the upper half, writing 8 or 16 leaves the rest. Byte registers here are the low bytes. */
  setReg(index: number, size: Size, value: Int): void;
  /** `segment`: one of ES CS SS DS FS GS; `offset` is wrapped by the caller. */
  load(segment: number, offset: Int, size: Size): Int;
  store(segment: number, offset: Int, size: Size, value: Int): void;
  /** Loads through the operation's own segment (DS or an override; that of the memory operand if there is one), for strings. */
  loadDefault(offset: Int, size: Size): Int;
  /** Stores through the operation's own segment: MOV to moffs, bit strings. */
  storeDefault(offset: Int, size: Size, value: Int): void;
  /** Raises the fault that `storeDefault` there would raise: before the load of a read-modify-write. */
  probeStoreDefault(offset: Int, size: Size): void;
  /** Raises the fault that a store there would raise, and does nothing else. */
  probeStore(segment: number, offset: Int, size: Size): void;
  /** Mask of the operation's address size: 0xffff, 0xffffffff or all ones. */
  addressMask(): Int;
  /** Immediate of the operation as an Int (already extended). */
  immediate(): Int;
  /** Fields of the CPU state by bank offset (`state.x` in cpu-state.ts). Sub-64-bit fields are zero-extended. */
  state(offset: number, size: Size): Int;
  setState(offset: number, size: Size, value: Int): void;

  // Integer arithmetic. `size` defaults to `this.size`; results are zero-extended from it.
  add(a: Int, b: Int, size?: Size): Int;
  sub(a: Int, b: Int, size?: Size): Int;
  mul(a: Int, b: Int, size?: Size): Int;
  /** Upper 64 bits of the 128-bit product. */
  mulHigh(a: Int, b: Int, signed: boolean): Int;
  and(a: Int, b: Int): Int;
  or(a: Int, b: Int): Int;
  xor(a: Int, b: Int): Int;
  not(a: Int, size?: Size): Int;
  neg(a: Int, size?: Size): Int;
  /** Shift counts are taken modulo 64, as WebAssembly does; mask or guard them first. */
  shl(a: Int, count: Int, size?: Size): Int;
  shr(a: Int, count: Int): Int;
  /** Arithmetic shift of a value of `size` bits. */
  sar(a: Int, count: Int, size?: Size): Int;
  /** 64-bit division; the divisor must not be zero, and a signed quotient must not overflow. */
  div(a: Int, b: Int, signed: boolean): Int;
  rem(a: Int, b: Int, signed: boolean): Int;
  /** From `from` bits to 64 (then truncate to `size` with `truncate` if needed). */
  signExtend(a: Int, from: Size): Int;
  truncate(a: Int, to: Size): Int;
  countLeadingZeros(a: Int): Int;
  countTrailingZeros(a: Int): Int;
  popCount(a: Int): Int;
  byteSwap(a: Int, size: 32 | 64): Int;

  // Comparison and logic on Bool
  eq(a: Int, b: Int): Bool;
  ne(a: Int, b: Int): Bool;
  ltu(a: Int, b: Int): Bool;
  lts(a: Int, b: Int): Bool;
  isZero(a: Int): Bool;
  /** Bit `index` of a. */
  bit(a: Int, index: number | Int): Bool;
  not1(a: Bool): Bool;
  and1(a: Bool, b: Bool): Bool;
  or1(a: Bool, b: Bool): Bool;
  xor1(a: Bool, b: Bool): Bool;
  toInt(a: Bool): Int;
  select(condition: Bool, whenTrue: Int, whenFalse: Int): Int;

  // Flags
  /**
   * Records the arithmetic flags of result = a op b (op b for one operand: "neg" with a = 0). Sizes as `size` or given.
   *   add, adc: all six from a, b and result (adc: carry in is part of result); sub, sbb, cmp, neg: likewise
   *   inc, dec: all but CF; logic: CF = OF = 0, AF = 0, rest from result
   */
  recordFlags(
    operation: "add" | "adc" | "sub" | "sbb" | "inc" | "dec" | "logic",
    a: Int,
    b: Int,
    result: Int,
    size?: Size,
  ): void;
  /** ZF, SF, PF from result, with CF and OF given; AF cleared. For shifts and multiplication. */
  recordShiftFlags(result: Int, carry: Bool, overflow: Bool, size?: Size): void;
  flag(name: FlagName): Bool;
  setFlag(name: FlagName, value: Bool): void;
  condition(code: ConditionCode): Bool;
  /** The condition encoded in the low four bits of the opcode of the form. */
  formCondition(): Bool;
  /** All of RFLAGS, 64 bits, VM and RF as they are. */
  readFlags(): Int;
  /** ZF, PF and CF at their places in RFLAGS, all other bits zero: OF, SF and AF are cleared. */
  recordComparison(flags: Int): void;
  /** Arithmetic flags and DF only; system flags go through the helper "writeFlags". */
  writeArithmeticFlags(value: Int): void;

  // Control
  if(condition: Bool, whenTrue: () => void, whenFalse?: () => void): void;
  /** Repeats the body while it returns true. */
  loopWhile(body: () => Bool): void;
  /** Ends the instruction: execution goes on at RIP `target` (already truncated to the operand size). Ends the block. */
  jump(target: Int): void;
  /** Ends the block with a direct jump to the form's relative operand. */
  jumpRelative(): void;
  /** Ends the block: to the relative operand if the condition holds, else to the next instruction. */
  branchRelative(condition: Bool): void;
  /** RIP of the next instruction, truncated to the code size. */
  nextRip(): Int;
  /** Runs the same instruction again (REP iterations), giving the scheduler a chance. Ends the block's straight run. */
  repeat(): void;
  /** REP MOVS or REP STOS, in one go where it can be; `otherwise` does some of it and repeats. */
  stringRun(kind: "move" | "store", otherwise: () => void): void;
  /** Ends the block after this instruction, because it changed what the following code depends on. RIP is the next instruction. */
  endBlock(): void;
  /** Raises an exception at this instruction; nothing of it has happened. `error` is the error code where the vector has one. */
  raise(
    vector: "#DE" | "#DB" | "#BP" | "#OF" | "#BR" | "#UD" | "#NM" | "#SS" | "#GP" | "#AC" | "#MF" | "#XM",
    error?: number,
  ): void;
  raiseIf(condition: Bool, vector: "#DE" | "#UD" | "#NM" | "#SS" | "#GP" | "#MF" | "#XM" | "#BR" | "#OF", error?: number): void;

  /**
   * Calls the helper of that name (TypeScript, see helpers.ts) with 32-bit integers, RIP and the retired count made exact
   * before. It may fault or leave the guest. Returns its 32-bit result. 64-bit values travel in `state.helper`.
   */
  helper(name: string, ...args: (number | Int | Bool)[]): Bool;
  /** The same for a helper that ends the block: RIP was set by the helper (far transfers), or is the next instruction. */
  helperThenEndBlock(name: string, ...args: (number | Int | Bool)[]): void;
  /** Low 32 bits, as a helper's argument. */
  low32(a: Int): Bool;
  /** A helper's result as an Int, zero-extended. */
  fromI32(a: Bool): Int;

  // Vectors and floating point: `operation` is the WebAssembly instruction's own name, as "i32x4.add" or "f64.sqrt".
  vec(operation: string, ...args: Value[]): Vec;
  /** Instructions with a lane: "i16x8.replace_lane", "i64x2.extract_lane" (result type by name). */
  lane(operation: string, laneIndex: number, ...args: Value[]): Value;
  shuffle(a: Vec, b: Vec, lanes: readonly number[]): Vec;
  vecConst(bytes: readonly number[]): Vec;
  scalar(operation: string, ...args: Value[]): Value;
}
