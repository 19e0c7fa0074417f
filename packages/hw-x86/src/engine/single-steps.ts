/**
 * Instructions that run by themselves, since something is to happen right behind them: in the shadow of STI or MOV SS, with TF set, with
 * branches recorded, or past their own breakpoint; and the debug exceptions that come of it. Source: Intel SDM Vol. 3B, Debug Exceptions.
 */
import type { Blocks } from "./blocks.ts";
import type { Cpu } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import { variants } from "./decoder/decoder.ts";
import type { Variant } from "./decoder/variant.ts";
import { VM_EXIT } from "./guest-mode.ts";
import type { InterpreterInstance } from "./interpreter/instance.ts";
import { type InterruptShadow, MOV_SS_SHADOW, SHADOWS } from "./interrupt-shadow.ts";
import { OP_BYTES, op } from "./operation.ts";
import type { RunControl } from "./run-control.ts";
import { Flag, Vector } from "./system/bits.ts";
import { Dr6 } from "./system/breakpoints.ts";
import type { EngineControl } from "./system-interface.ts";
import { isTakenBranch } from "./taken-branches.ts";

const OPERATION = state.operation >>> 2;
const INTERRUPTIBILITY = state.interruptibility >>> 2;
const SYSTEM_FLAGS = state.systemFlags >>> 2;
const DEBUGCTL = state.debugctl >>> 2;
/** IA32_DEBUGCTL: record branches; BTF, single-step on branches. */
const BRANCH_RECORDS = 1;
const BRANCH_TRAP = 2;
/** REP and REPNE in `op.prefixes`. */
const REPEATS = 6;

export class SingleSteps {
  readonly #cpu: Cpu & Pick<EngineControl, "deliverEvent" | "holdsTraps">;
  readonly #control: RunControl;
  readonly #shadow: InterruptShadow;
  readonly #blocks: Blocks;
  readonly #interpreter: InterpreterInstance;
  /** RFLAGS.RF, where it is set, is so for the instruction after so many; then it is clear, which nobody sees before he looks. */
  #resumeAt = 0;

  constructor(
    cpu: Cpu & Pick<EngineControl, "deliverEvent" | "holdsTraps">,
    control: RunControl,
    shadow: InterruptShadow,
    blocks: Blocks,
    interpreter: InterpreterInstance,
  ) {
    this.#cpu = cpu;
    this.#control = control;
    this.#shadow = shadow;
    this.#blocks = blocks;
    this.#interpreter = interpreter;
  }

  /** The next instruction is a step. Settle the shadow first. */
  isDue(): boolean {
    const { u32, breakpoints } = this.#cpu;
    const isTraced = (u32[SYSTEM_FLAGS] & Flag.TF) !== 0 || breakpoints.hits !== 0;
    const isRecorded = (u32[DEBUGCTL] & BRANCH_RECORDS) !== 0;
    return this.#shadow.needsStep || isTraced || isRecorded || (breakpoints.hasFetch && this.#isResuming());
  }

  /** One instruction, and what follows it. */
  step(): void {
    const cpu = this.#cpu;
    const { i32, u32, breakpoints } = cpu;
    const shadows = i32[INTERRUPTIBILITY] & SHADOWS;
    const isTraced = (i32[SYSTEM_FLAGS] & Flag.TF) !== 0;
    const isResuming = this.#isResuming();
    const isRecorded = (u32[DEBUGCTL] & BRANCH_RECORDS) !== 0;
    const { deliveries } = cpu;
    const start = cpu.get64(state.rip);
    this.#control.allowOne();
    // An instruction breakpoint behind MOV SS is not met either
    const header = this.#blocks.truncated(1, isResuming || (shadows & MOV_SS_SHADOW) !== 0);
    // Generated code may decode other blocks, but none in place of this one before it has run
    const record = header + OP_BYTES;
    const variant = variants[this.#blocks.decoded] as Variant;
    this.#interpreter.run(header);
    i32[OPERATION] = 0;
    if (this.#control.hasLeft) {
      this.#control.backToExit();
      return;
    }
    i32[INTERRUPTIBILITY] &= ~shadows;
    if (deliveries === cpu.deliveries) {
      // Between the iterations of a repeated string instruction RF stays
      if (isResuming && this.#isRepeating(record, start)) this.#resumeAt = cpu.retired();
      const isBranch = (isRecorded || this.#stepsBranches()) && isTakenBranch(cpu, variant, record);
      if (isTraced && (isBranch || !this.#stepsBranches())) breakpoints.hits |= Dr6.BS;
      if (isRecorded && isBranch) {
        cpu.set64(state.branchFrom, start);
        cpu.set64(state.branchTo, cpu.get64(state.rip));
      }
    }
    if (breakpoints.hits !== 0 && this.#isTrapHeld()) {
      // What MOV SS met waits for the next instruction; a single step that it ended is lost
      breakpoints.hits &= ~Dr6.BS;
    }
    if (breakpoints.hits === 0 && shadows !== 0 && cpu.guest.windowOpened()) cpu.requestStop();
  }

  /** With IA32_DEBUGCTL.BTF only branches that are taken end a step. */
  #stepsBranches(): boolean {
    return (this.#cpu.u32[DEBUGCTL] & BRANCH_TRAP) !== 0;
  }
  /** The instruction there, a repeated string instruction, has further iterations to do. */
  #isRepeating(record: number, start: bigint): boolean {
    return (this.#cpu.u8[record + op.prefixes] & REPEATS) !== 0 && this.#cpu.get64(state.rip) === start;
  }

  /** RF holds for the instruction that comes next. */
  #isResuming(): boolean {
    return (this.#cpu.u32[SYSTEM_FLAGS] & Flag.RF) !== 0 && this.#control.retired() === this.#resumeAt;
  }
  /** Clears RF where it no longer holds. */
  settleResume(): void {
    const { u32 } = this.#cpu;
    if ((u32[SYSTEM_FLAGS] & Flag.RF) !== 0 && this.#control.retired() !== this.#resumeAt) u32[SYSTEM_FLAGS] &= ~Flag.RF;
  }
  /** RF was set: an instruction that does so (IRET) does it for the one after. */
  resumeNext(): void {
    const isRunning = this.#cpu.u32[OPERATION] !== 0;
    this.#resumeAt = this.#control.retired() + (isRunning ? 1 : 0);
    if (isRunning && this.#cpu.breakpoints.hasFetch) this.#control.divert();
  }

  /** MOV SS and POP SS hold off the traps of what they met. */
  #isTrapHeld(): boolean {
    return (this.#cpu.i32[INTERRUPTIBILITY] & MOV_SS_SHADOW) !== 0;
  }
  /** The instruction at hand exits and has not been; what MOV SS before it met waits still. */
  forgetTrap(): void {
    if (!this.#isTrapHeld()) this.#cpu.breakpoints.hits = 0;
  }

  /**
   * The trap at the end of the instruction before, if nothing holds it off. False: it exits. What the delivery itself meets waits for the
   * handler's first instruction: with a breakpoint on the stack of the handler there would be no end to it.
   */
  trap(): boolean {
    const cpu = this.#cpu;
    if (cpu.holdsTraps || this.#isTrapHeld()) return true;
    const payload = BigInt(cpu.breakpoints.hits);
    cpu.breakpoints.hits = 0;
    const event = { errorCode: undefined, instructionLength: 0, payload, injected: false };
    try {
      cpu.deliverEvent({ vector: Vector.DB, type: 3, ...event });
    } catch (thrown) {
      if (thrown !== VM_EXIT) throw thrown;
      return false;
    }
    return true;
  }
}
