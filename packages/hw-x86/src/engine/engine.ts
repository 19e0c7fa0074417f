/**
 * The engine of one bank: runs guest code with the generated interpreter, and is the CPU that helpers and system code see.
 * Generated code leaves by returning, when the budget does not cover the next block, or by an exception that a call out of it
 * threw: a guest fault, which is delivered here, or a VM exit.
 */
import type { Gpa, Gva } from "../addresses.ts";
import { Blocks } from "./blocks.ts";
import { PAGE_BYTES } from "./code-pages.ts";
import type { Cpu, CpuModel } from "./cpu.ts";
import { CPU_STATE, CPU_STATE_BYTES, gprOffset, SEG_READ_END, SEG_WRITE_END, state } from "./cpu-state.ts";
import { createDecodedOperation, variants } from "./decoder/decoder.ts";
import { decoderOfLevel } from "./decoder/level-decoder.ts";
import type { Variant } from "./decoder/variant.ts";
import { type EngineCounts, EXIT_REASONS } from "./engine-statistics.ts";
import { readFlags, writeFlags } from "./flags.ts";
import { GUEST_FAULT, type GuestMode, VM_EXIT } from "./guest-mode.ts";
import { helperTable } from "./helper-table.ts";
import { type InterpreterInstance, instantiateInterpreter, interpreterTables } from "./interpreter/instance.ts";
import { block, OP_BYTES, op } from "./operation.ts";
import { Cr0, Flag, Vector } from "./system/bits.ts";
import { Breakpoints, Dr6 } from "./system/breakpoints.ts";
import * as events from "./system/events.ts";
import * as memory from "./system/memory-access.ts";
import * as paging from "./system/paging.ts";
import * as segmentation from "./system/segmentation.ts";
import { switchTags } from "./system/translation-caches.ts";
import type { EngineControl, GuestEvent, StopReason } from "./system-interface.ts";
import { isTakenBranch } from "./taken-branches.ts";
import { type TranslateMode, Translator } from "./translator/translator.ts";
import { behaviourOf } from "./vendor-behaviour.ts";

const RIP = state.rip >>> 2;
const BUDGET = state.budget >>> 2;
const OPERATION = state.operation >>> 2;
const BLOCK_START = state.blockStart >>> 2;
const INTERRUPTIBILITY = state.interruptibility >>> 2;
const SYSTEM_FLAGS = state.systemFlags >>> 2;
const ACTIVITY = state.activity >>> 2;
const FURTHER_ITERATIONS = state.furtherIterations >>> 2;
const SHADOWS = 3;
const STI_SHADOW = 1;
const MOV_SS_SHADOW = 2;
const DEBUGCTL = state.debugctl >>> 2;
/** IA32_DEBUGCTL: record branches; BTF, single-step on branches. */
const BRANCH_RECORDS = 1;
const BRANCH_TRAP = 2;
const LOGGED_BYTES = 15;
const NO_SHADOW = -1;
/** Events without an instruction between them after which each further one takes the time of so many instructions. */
const STORM_BEGINS = 16;
const STORM_COST = 64;
/** REP and REPNE in `op.prefixes`. */
const REPEATS = 6;

export interface EngineOptions {
  /** The bank: shared, at least as large as what lies below BANK_FIRST_FREE. */
  memory: WebAssembly.Memory;
  model: CpuModel;
  guest: GuestMode;
  log: (line: string) => void;
  /** What is translated; "hot" unless given. */
  translate?: TranslateMode | undefined;
  /** Entries of a block after which "hot" translates it; HOT_ENTRIES unless given. Tests, whose programs are short, take fewer. */
  hotEntries?: number | undefined;
  /** Bytes of decoded code above which blocks that hardly ran are dropped. */
  sweepBytes?: number | undefined;
}

export class Engine implements Cpu, EngineControl {
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
  readonly view: DataView;
  readonly bankBytes: number;
  readonly model: CpuModel;
  guest: GuestMode;
  readonly exitCounts = new Float64Array(EXIT_REASONS);
  readonly breakpoints = new Breakpoints();
  holdsTraps = false;
  #isStepping = false;
  privilegeChanges: (() => void) | undefined;
  readonly #log: (line: string) => void;
  readonly #blocks: Blocks;
  readonly #interpreter: InterpreterInstance;
  readonly #translator: Translator;
  readonly #logged = new Set<string>();

  /** Instructions that `run` was ever allowed, minus what it gave back. */
  #granted = 0;
  /** A run may end with as much of its budget left, where the next block needs more. */
  #enough = 0;
  /** The budget does not cover the next block, and need not. */
  #isSpent = false;
  /** What endless events were charged of the budget. */
  #charged = 0;
  /** Budget put aside so that generated code returns before the next block. */
  #stash = 0;
  #stopRequested = false;
  #diverted = false;
  /** `leave` was called by the instruction that ran last, whose RIP this is. */
  #left = false;
  #leftRipLow = 0;
  #leftRipHigh = 0;
  /** RFLAGS.RF, where it is set, is so for the instruction after so many; then it is clear, which nobody sees before he looks. */
  #resumeAt = 0;
  deliveries = 0;
  /** Instructions that had retired at the latest event, and how many events came there. */
  #stormAt = -1;
  #storm = 0;
  /** What the recorded fault is: 3, or 5 and 6 for INT1, INT3 and INTO. */
  #faultType: 3 | 5 | 6 = 3;
  #faultPayload = 0n;
  /** Handler that `cutAfter` replaced, to be put back, and where. */
  #cutAt = 0;
  /** What an access of a translated region threw. */
  #regionThrown: unknown;
  #cutHandler = 0;
  /**
   * Blocking by STI holds while exactly so many instructions have retired; NO_SHADOW where the bit in the state block is exact. Hardly
   * anybody looks at the bit before it is over, so what follows STI need not run by itself: those who look settle it first.
   */
  #shadowEnd = NO_SHADOW;

  constructor(options: EngineOptions) {
    const { buffer } = options.memory;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.view = new DataView(buffer);
    this.bankBytes = buffer.byteLength;
    this.model = options.model;
    this.guest = options.guest;
    this.#log = options.log;
    this.#setConstants();
    const numbers = interpreterTables();
    this.#blocks = new Blocks(
      this,
      decoderOfLevel(this.model.level),
      createDecodedOperation(),
      variants,
      numbers,
      options.sweepBytes,
    );
    this.#interpreter = this.#instantiate(options.memory);
    const mode = options.translate ?? "hot";
    this.#translator = new Translator(mode, this, options.memory, this.#interpreter, variants, numbers, options.hotEntries);
    this.#blocks.translator = this.#translator;
    this.#blocks.granulesEqual = this.#interpreter.granulesEqual;
  }

  /** Fields that generated code takes for granted. */
  #setConstants(): void {
    this.set64(state.zero, 0n);
    this.set64(state.fourGib, 1n << 32n);
    this.set32(state.vendorBehaviour, behaviourOf(this.model.vendor));
    this.set64(state.flatSegment + SEG_READ_END, 0xffff_ffff_ffff_ffffn);
    this.set64(state.flatSegment + SEG_WRITE_END, 0xffff_ffff_ffff_ffffn);
  }

  #instantiate(bank: WebAssembly.Memory): InterpreterInstance {
    const helpers: Record<string, (a: number, b: number, c: number, d: number) => number> = {};
    for (const [name, helper] of Object.entries(helperTable)) {
      helpers[name] = (a, b, c, d) => (helper(this, a, b, c, d) as number) | 0;
    }
    return instantiateInterpreter(bank, helpers, {
      readSlow: (lo, hi, bytes) => memory.readSlow(this, lo, hi, bytes),
      writeSlow: (lo, hi, bytes) => memory.writeSlow(this, lo, hi, bytes),
      rmwSlow: (lo, hi, bytes) => memory.rmwSlow(this, lo, hi, bytes),
      rmwFinish: () => memory.rmwFinish(this),
      segmentSlow: (segment, lo, hi, bytes, isWrite) => segmentation.segmentSlow(this, segment, lo, hi, bytes, isWrite !== 0),
      findBlock: () => (this.i32[BUDGET] <= 0 ? 0 : this.#blocks.find()),
      raise: (vector, error) => this.#raiseFromRow(vector, error),
      undefinedInstruction: () => this.#undefinedInstruction(),
      divert: () => this.#settleHelper(),
      hot: (header) => this.#blocks.hot(header),
      regionRead: (lo, hi, bytes) =>
        this.#forRegion(() => (memory.mayMeetBreakpoint(this, lo, hi, bytes) ? 0 : memory.readSlow(this, lo, hi, bytes))),
      regionUpdate: (lo, hi, bytes) =>
        this.#forRegion(() => {
          const isInPage = bytes <= PAGE_BYTES - (lo & (PAGE_BYTES - 1));
          const isPlain = isInPage && !memory.mayMeetBreakpoint(this, lo, hi, bytes);
          return !isPlain || memory.writeReachesCode(this, lo, hi, bytes) ? 0 : memory.rmwSlow(this, lo, hi, bytes);
        }),
      regionWrite: (lo, hi, bytes) =>
        this.#forRegion(() => {
          if (memory.mayMeetBreakpoint(this, lo, hi, bytes) || memory.writeReachesCode(this, lo, hi, bytes)) return 0;
          memory.writeSlow(this, lo, hi, bytes);
          return 1;
        }),
      regionResume: () => {
        const thrown = this.#regionThrown;
        this.#regionThrown = undefined;
        if (thrown === undefined) return this.i32[OPERATION];
        if (thrown !== GUEST_FAULT || this.#diverted) throw thrown;
        return this.#deliverForRegion();
      },
    });
  }

  /**
   * A translated region holds registers in locals, which an exception through it would lose: what is thrown here waits until the
   * region has put them back. Stores to code are left to the interpreter, which drops the code at once.
   */
  #forRegion(access: () => number): number {
    try {
      return access();
    } catch (thrown) {
      this.#regionThrown = thrown;
      return 0;
    }
  }

  /**
   * A fault in a region that has put its registers back: delivered at once, since an exception through generated code costs more than
   * all else of a page fault. Returns 0, after which generated code goes on at `state.rip`, or returns if the event stopped the guest.
   */
  #deliverForRegion(): 0 {
    this.#giveBack();
    this.deliverEvent(this.#recordedFault());
    if (this.#stopRequested || this.i32[ACTIVITY] !== 0 || this.breakpoints.hits !== 0) this.#divert();
    return 0;
  }

  // ---- Running ----

  run(instructions: number, isExact = true): StopReason {
    this.#granted += instructions;
    this.#enough = isExact ? 0 : instructions - 1;
    this.#stash = 0;
    this.#stopRequested = false;
    this.#diverted = false;
    this.#shadowEnd = NO_SHADOW;
    this.#left = false;
    this.i32[BUDGET] = instructions;
    this.i32[OPERATION] = 0;
    this.#blocks.distrust();
    this.debugStateChanged();
    try {
      for (;;) {
        if (this.breakpoints.hits !== 0 && !this.#trap()) return this.#exit();
        if (this.i32[ACTIVITY] !== 0) return this.i32[ACTIVITY] === 1 ? "halted" : "shutdown";
        if (this.#stopRequested) return "stop";
        if (this.i32[BUDGET] <= 0 || this.#isSpent) return "budget";
        try {
          this.#runOnce();
        } catch (thrown) {
          this.#giveBack();
          if (thrown === VM_EXIT) return this.#exit();
          if (thrown !== GUEST_FAULT) throw thrown;
          // The instruction has not been: it will meet its breakpoints when it runs again
          this.breakpoints.hits = 0;
          try {
            this.deliverEvent(this.#recordedFault());
            if (this.#isStepping) this.#stopRequested = true;
          } catch (second) {
            if (second === VM_EXIT) return this.#exit();
            throw second;
          }
        }
        this.#unstash();
        if (this.#left) return this.#exit();
      }
    } finally {
      this.#unstash();
      this.#granted -= this.i32[BUDGET];
      this.i32[BUDGET] = 0;
      this.#isSpent = false;
      this.settleShadow();
    }
  }

  step(): StopReason {
    this.#isStepping = true;
    try {
      return this.run(1);
    } finally {
      this.#isStepping = false;
    }
  }

  /** The instruction at hand has not been; what MOV SS before it met waits still. */
  #exit(): "exit" {
    if (!this.#isTrapHeld()) this.breakpoints.hits = 0;
    return "exit";
  }

  /** Runs until the budget is short, something stops or diverts, or an exception is thrown. */
  #runOnce(): void {
    this.settleShadow();
    const isShadowed = (this.i32[INTERRUPTIBILITY] & SHADOWS) !== 0 && this.#shadowEnd === NO_SHADOW;
    const isTraced = (this.i32[SYSTEM_FLAGS] & Flag.TF) !== 0 || this.breakpoints.hits !== 0;
    const isRecorded = (this.u32[DEBUGCTL] & BRANCH_RECORDS) !== 0;
    if (isShadowed || isTraced || isRecorded || (this.breakpoints.hasFetch && this.#isResuming())) {
      this.#step();
      return;
    }
    this.#interpreter.run(0);
    this.i32[OPERATION] = 0;
    const budget = this.i32[BUDGET];
    if (this.#left) this.#backToExit();
    if (this.#diverted || budget <= 0) return;
    // The budget does not cover the next block, or the block was dropped.
    const header = this.#blocks.find();
    if (this.i32[(header + block.charge) >>> 2] <= budget) this.#interpreter.run(header);
    else if (budget <= this.#enough) this.#isSpent = true;
    else this.#interpreter.run(this.#blocks.truncated(budget));
    this.i32[OPERATION] = 0;
    if (this.#left) this.#backToExit();
  }

  leave(): void {
    const { u32 } = this;
    this.#left = true;
    this.#leftRipLow = u32[RIP];
    this.#leftRipHigh = u32[RIP + 1];
    this.#stash += this.#unexecuted();
    this.i32[OPERATION] = 0;
    this.#divert();
  }
  /** Generated code went on to the next instruction when it ran out of budget. */
  #backToExit(): void {
    this.u32[RIP] = this.#leftRipLow;
    this.u32[RIP + 1] = this.#leftRipHigh;
  }

  /** One instruction, in the shadow of STI or MOV SS, with TF set, or past its own breakpoint, and what follows it. */
  #step(): void {
    const shadows = this.i32[INTERRUPTIBILITY] & SHADOWS;
    const isTraced = (this.i32[SYSTEM_FLAGS] & Flag.TF) !== 0;
    const isResuming = this.#isResuming();
    const isRecorded = (this.u32[DEBUGCTL] & BRANCH_RECORDS) !== 0;
    const { deliveries } = this;
    const start = this.get64(state.rip);
    const rest = this.i32[BUDGET] - 1;
    this.i32[BUDGET] = 1;
    this.#stash += rest;
    // An instruction breakpoint behind MOV SS is not met either
    const header = this.#blocks.truncated(1, isResuming || (shadows & MOV_SS_SHADOW) !== 0);
    // Generated code may decode other blocks, but none in place of this one before it has run
    const record = header + OP_BYTES;
    const variant = variants[this.#blocks.decoded] as Variant;
    this.#interpreter.run(header);
    this.i32[OPERATION] = 0;
    if (this.#left) {
      this.#backToExit();
      return;
    }
    this.i32[INTERRUPTIBILITY] &= ~shadows;
    if (deliveries === this.deliveries) {
      // Between the iterations of a repeated string instruction RF stays
      if (isResuming && this.#isRepeating(record, start)) this.#resumeAt = this.retired();
      const isBranch = (isRecorded || this.#stepsBranches()) && isTakenBranch(this, variant, record);
      if (isTraced && (isBranch || !this.#stepsBranches())) this.breakpoints.hits |= Dr6.BS;
      if (isRecorded && isBranch) {
        this.set64(state.branchFrom, start);
        this.set64(state.branchTo, this.get64(state.rip));
      }
    }
    if (this.breakpoints.hits !== 0 && this.#isTrapHeld()) {
      // What MOV SS met waits for the next instruction; a single step that it ended is lost
      this.breakpoints.hits &= ~Dr6.BS;
    }
    if (this.breakpoints.hits === 0 && shadows !== 0 && this.guest.windowOpened()) this.requestStop();
  }

  /** With IA32_DEBUGCTL.BTF only branches that are taken end a step. */
  #stepsBranches(): boolean {
    return (this.u32[DEBUGCTL] & BRANCH_TRAP) !== 0;
  }
  /** The instruction there, a repeated string instruction, has further iterations to do. */
  #isRepeating(record: number, start: bigint): boolean {
    return (this.u8[record + op.prefixes] & REPEATS) !== 0 && this.get64(state.rip) === start;
  }

  // ---- Debug exceptions ----

  /** RF holds for the instruction that comes next. */
  #isResuming(): boolean {
    return (this.u32[SYSTEM_FLAGS] & Flag.RF) !== 0 && this.retired() === this.#resumeAt;
  }
  /** MOV SS and POP SS hold off the traps of what they met. */
  #isTrapHeld(): boolean {
    return (this.i32[INTERRUPTIBILITY] & MOV_SS_SHADOW) !== 0;
  }

  /**
   * The trap at the end of the instruction before, if nothing holds it off. False: it exits. What the delivery itself meets waits for the
   * handler's first instruction: with a breakpoint on the stack of the handler there would be no end to it.
   */
  #trap(): boolean {
    if (this.holdsTraps || this.#isTrapHeld()) return true;
    const payload = BigInt(this.breakpoints.hits);
    this.breakpoints.hits = 0;
    const event = { errorCode: undefined, instructionLength: 0, payload, injected: false };
    try {
      this.deliverEvent({ vector: Vector.DB, type: 3, ...event });
    } catch (thrown) {
      if (thrown !== VM_EXIT) throw thrown;
      return false;
    }
    return true;
  }

  trapAfterInstruction(): void {
    if (this.u32[OPERATION] !== 0) this.#endBlockEarly();
  }

  get pendingTrap(): number {
    return this.breakpoints.hits;
  }
  set pendingTrap(bits: number) {
    this.breakpoints.hits = bits;
  }

  debugStateChanged(): void {
    if (this.breakpoints.refresh(this)) this.updateTags();
  }

  #unstash(): void {
    this.i32[BUDGET] += this.#stash;
    this.#stash = 0;
    this.#diverted = false;
    if (this.#cutAt !== 0) {
      this.u16[this.#cutAt >>> 1] = this.#cutHandler;
      this.#cutAt = 0;
    }
  }

  /** Budget of the running operation, which did not retire, and of those behind it in its block. */
  #unexecuted(): number {
    const operation = this.u32[OPERATION];
    if (operation === 0) return 0;
    const start = this.u32[BLOCK_START];
    return this.u32[(start + block.count) >>> 2] - ((operation - start) / OP_BYTES - 1);
  }
  #giveBack(): void {
    this.i32[BUDGET] += this.#unexecuted();
    this.i32[OPERATION] = 0;
  }

  shadowNextInstruction(): void {
    if ((this.i32[SYSTEM_FLAGS] & Flag.TF) === 0) this.#shadowEnd = this.retired() + 1;
  }
  settleShadow(): void {
    if (this.#shadowEnd === NO_SHADOW || this.retired() === this.#shadowEnd) return;
    this.#endShadow();
  }
  #endShadow(): void {
    this.i32[INTERRUPTIBILITY] &= ~STI_SHADOW;
    this.#shadowEnd = NO_SHADOW;
  }

  /** A helper that ended its block left shadows or TF behind: the next instruction is a step, unless it merely is in STI's shadow. */
  #settleHelper(): void {
    // An instruction that exits has not run: what shadows it stays
    if (this.#left) return;
    if (this.#shadowEnd !== NO_SHADOW) {
      if (this.#shadowEnd <= this.retired()) this.#endShadow();
      const others = this.i32[INTERRUPTIBILITY] & SHADOWS & ~STI_SHADOW;
      if (others === 0 && (this.i32[SYSTEM_FLAGS] & Flag.TF) === 0) return;
    }
    this.#divert();
  }
  #divert(): void {
    this.#stash += this.i32[BUDGET];
    this.i32[BUDGET] = 0;
    this.#diverted = true;
  }

  requestStop(): void {
    this.#stopRequested = true;
    if (this.u32[OPERATION] !== 0) this.#endBlockEarly();
  }
  #endBlockEarly(): void {
    const operation = this.u32[OPERATION];
    // The block's rest must not run: the operation that follows gives way, and is put back when generated code has returned.
    const next = operation + OP_BYTES + op.handler;
    if (this.#cutAt === 0) {
      this.#cutAt = next;
      this.#cutHandler = this.u16[next >>> 1];
      this.#blocks.cutAfter(operation);
    }
    // Giving way, the operation behind gives back what the block has left of the budget: that is put aside as well
    const rest = this.#unexecuted() - 1;
    this.#divert();
    this.#stash += rest;
    this.i32[BUDGET] -= rest;
  }

  retired(): number {
    return this.#granted - this.i32[BUDGET] - this.#stash - this.#unexecuted();
  }

  instructionsRetired(): number {
    const { u32 } = this;
    const further = u32[FURTHER_ITERATIONS] + u32[FURTHER_ITERATIONS + 1] * 2 ** 32;
    return this.retired() - this.#charged - further;
  }

  // ---- Faults and events ----

  raise(vector: number, errorCode?: number, payload = 0n): never {
    this.#faultType = 3;
    this.#recordFault(vector, errorCode, payload);
    throw GUEST_FAULT;
  }
  #raiseFromRow(vector: number, error: number): never {
    this.#recordFault(vector, error < 0 ? undefined : error, 0n);
    if (vector === Vector.DB) this.#faultType = 5;
    else this.#faultType = vector === Vector.BP || vector === Vector.OF ? 6 : 3;
    throw GUEST_FAULT;
  }
  #recordFault(vector: number, errorCode: number | undefined, payload: bigint): void {
    this.u32[state.faultVector >>> 2] = vector;
    this.u32[state.faultError >>> 2] = errorCode ?? 0;
    this.u32[state.faultHasError >>> 2] = errorCode === undefined ? 0 : 1;
    this.#faultPayload = payload;
  }
  #recordedFault(): GuestEvent {
    const type = this.#faultType;
    return {
      vector: this.u32[state.faultVector >>> 2],
      type,
      errorCode: this.u32[state.faultHasError >>> 2] !== 0 ? this.u32[state.faultError >>> 2] : undefined,
      // INT1, INT3 and INTO have one byte
      instructionLength: type === 3 ? 0 : 1,
      payload: this.#faultPayload,
      injected: false,
    };
  }
  #undefinedInstruction(): never {
    const start = this.u32[BLOCK_START];
    const at = this.u32[(start + block.physical) >>> 2] + this.u16[(this.operation + op.ripOffset) >>> 1];
    const bytes = [...this.u8.subarray(at, at + LOGGED_BYTES)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    if (!this.#logged.has(bytes)) {
      this.#logged.add(bytes);
      this.#log(`#UD at RIP ${this.get64(state.rip).toString(16)}: not implemented or undefined: ${bytes}`);
    }
    return this.raise(Vector.UD);
  }

  deliverEvent(event: GuestEvent): void {
    this.#chargeStorm();
    events.deliverEvent(this, event);
  }
  /**
   * A handler whose first instruction faults is entered for ever without an instruction that retires, and time would stand still. So
   * events that follow each other like that take time as instructions do, once there are more than any sane guest has.
   */
  #chargeStorm(): void {
    const retired = this.retired();
    if (retired !== this.#stormAt) {
      this.#stormAt = retired;
      this.#storm = 0;
    } else if (++this.#storm > STORM_BEGINS) {
      const fromStash = Math.min(this.#stash, STORM_COST);
      const fromBudget = Math.max(0, Math.min(this.i32[BUDGET], STORM_COST - fromStash));
      this.#stash -= fromStash;
      this.i32[BUDGET] -= fromBudget;
      this.#charged += fromStash + fromBudget;
      this.#stormAt = this.retired();
    }
  }

  counts(): EngineCounts {
    const { mode } = this.#translator;
    return { mode, translator: this.#translator.statistics(), blocks: this.#blocks.statistics() };
  }

  adoptState(from: Uint8Array): void {
    if (from.length !== CPU_STATE_BYTES) throw new RangeError("not a CPU state block");
    this.u8.set(from, CPU_STATE);
    this.#setConstants();
    this.i32[OPERATION] = 0;
    this.i32[BLOCK_START] = 0;
    this.i32[BUDGET] = 0;
    this.breakpoints.refresh(this);
    this.updateSegments();
    this.flushTlb(false);
  }

  // ---- State ----

  get32(offset: number): number {
    return this.u32[offset >>> 2];
  }
  set32(offset: number, value: number): void {
    this.u32[offset >>> 2] = value;
  }
  get64(offset: number): bigint {
    return this.u64[offset >>> 3];
  }
  set64(offset: number, value: bigint): void {
    this.u64[offset >>> 3] = value;
  }
  reg(index: number): bigint {
    return this.u64[gprOffset(index) >>> 3];
  }
  setReg(index: number, value: bigint): void {
    this.u64[gprOffset(index) >>> 3] = value;
  }
  get operation(): number {
    return this.u32[OPERATION];
  }
  instructionLength(): number {
    const { operation } = this;
    return operation === 0 ? 0 : this.u8[operation + op.length];
  }
  nextRip(): bigint {
    return BigInt.asUintN(this.u32[state.codeSize >>> 2], this.get64(state.rip) + BigInt(this.instructionLength()));
  }
  setNextRip(rip: bigint): void {
    this.set64(state.nextRip, rip);
    if (this.operation === 0) this.set64(state.rip, rip);
  }
  readFlags(): number {
    if ((this.u32[SYSTEM_FLAGS] & Flag.RF) !== 0 && this.retired() !== this.#resumeAt) this.u32[SYSTEM_FLAGS] &= ~Flag.RF;
    return readFlags(this.u32);
  }
  setFlags(value: number): void {
    const before = this.u32[SYSTEM_FLAGS];
    writeFlags(this.u32, value);
    if (((value ^ before) & Flag.AC) !== 0 && (this.u32[state.cr0 >>> 2] & Cr0.AM) !== 0) switchTags(this);
    // An instruction that sets RF (IRET) does so for the one after
    if ((value & Flag.RF) !== 0) {
      const isRunning = this.u32[OPERATION] !== 0;
      this.#resumeAt = this.retired() + (isRunning ? 1 : 0);
      if (isRunning && this.breakpoints.hasFetch) this.#divert();
    }
    if ((value & Flag.AC) === 0) paging.closeUserPages(this);
  }

  // ---- Memory ----

  readLinear(address: Gva, bytes: 1 | 2 | 4 | 8, supervisor?: boolean): bigint {
    return memory.readLinear(this, address, bytes, supervisor);
  }
  writeLinear(address: Gva, bytes: 1 | 2 | 4 | 8, value: bigint, supervisor?: boolean): void {
    memory.writeLinear(this, address, bytes, value, supervisor);
  }
  readLinearBytes(address: Gva, target: Uint8Array, supervisor?: boolean): void {
    memory.readLinearBytes(this, address, target, supervisor);
  }
  writeLinearBytes(address: Gva, source: Uint8Array, supervisor?: boolean): void {
    memory.writeLinearBytes(this, address, source, supervisor);
  }
  probeWrite(address: Gva, bytes: number, supervisor?: boolean): void {
    memory.probeWrite(this, address, bytes, supervisor);
  }
  linear(segment: number, offset: bigint, bytes: number, isWrite: boolean): Gva {
    return segmentation.linear(this, segment, offset, bytes, isWrite);
  }
  readPhysical64(address: Gpa): bigint {
    return paging.readPhysical64(this, address);
  }
  writePhysical64(address: Gpa, value: bigint): void {
    paging.writePhysical64(this, address, value);
  }

  // ---- Consequences of changed state ----

  updateSegments(): void {
    segmentation.updateSegments(this);
  }
  flushTlb(keepGlobal: boolean): void {
    paging.flushTlb(this, keepGlobal);
  }
  flushPage(address: Gva): void {
    paging.flushPage(this, address);
  }
  updateTags(): void {
    paging.updateTags(this);
  }
  holdsCode(pageOffset: number): boolean {
    return this.#blocks.holdsCode(pageOffset);
  }
  codeWritten(offset: number, bytes: number): void {
    this.#blocks.written(offset, bytes, this.operation);
  }
}
