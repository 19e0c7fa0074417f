/**
 * What a run of the engine may still do, and how it is made to end. Generated code pays for a block out of `state.budget` before it
 * enters it, and returns where the budget does not cover the next: so whoever wants it back puts the budget aside.
 */
import type { Cpu } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import { cutAfter } from "./interpreter/synthetic.ts";
import { block, OP_BYTES, op } from "./operation.ts";

const RIP = state.rip >>> 2;
const BUDGET = state.budget >>> 2;
const OPERATION = state.operation >>> 2;
const BLOCK_START = state.blockStart >>> 2;
const FURTHER_ITERATIONS = state.furtherIterations >>> 2;
/** Events without an instruction between them after which each further one takes the time of so many instructions. */
const STORM_BEGINS = 16;
const STORM_COST = 64;

export class RunControl {
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  readonly #i32: Int32Array;
  /** A run may end with as much of its budget left, where the next block needs more. */
  enough = 0;
  /** The budget does not cover the next block, and need not. */
  isSpent = false;
  isStopRequested = false;
  isDiverted = false;
  /** `leave` was called by the instruction that ran last, whose RIP this is. */
  hasLeft = false;
  #leftRipLow = 0;
  #leftRipHigh = 0;
  /** Instructions that `run` was ever allowed, minus what it gave back. */
  #granted = 0;
  /** What endless events were charged of the budget. */
  #charged = 0;
  /** Budget put aside so that generated code returns before the next block. */
  #stash = 0;
  /** Instructions that had retired at the latest event, and how many events came there. */
  #stormAt = -1;
  #storm = 0;
  /** Handler that was cut off behind an operation, to be put back, and where. */
  #cutAt = 0;
  #cutHandler = 0;

  constructor({ u16, u32, i32 }: Pick<Cpu, "u16" | "u32" | "i32">) {
    this.#u16 = u16;
    this.#u32 = u32;
    this.#i32 = i32;
  }

  begin(instructions: number, isExact: boolean): void {
    this.#granted += instructions;
    this.enough = isExact ? 0 : instructions - 1;
    this.#stash = 0;
    this.isStopRequested = false;
    this.isDiverted = false;
    this.hasLeft = false;
    this.#i32[BUDGET] = instructions;
    this.#i32[OPERATION] = 0;
  }

  end(): void {
    this.unstash();
    this.#granted -= this.#i32[BUDGET];
    this.#i32[BUDGET] = 0;
    this.isSpent = false;
  }

  /** Leaves a budget for one instruction, until `unstash`. */
  allowOne(): void {
    const rest = this.#i32[BUDGET] - 1;
    this.#i32[BUDGET] = 1;
    this.#stash += rest;
  }

  unstash(): void {
    this.#i32[BUDGET] += this.#stash;
    this.#stash = 0;
    this.isDiverted = false;
    if (this.#cutAt !== 0) {
      this.#u16[this.#cutAt >>> 1] = this.#cutHandler;
      this.#cutAt = 0;
    }
  }

  /** Budget of the running operation, which did not retire, and of those behind it in its block. */
  #unexecuted(): number {
    const operation = this.#u32[OPERATION];
    if (operation === 0) return 0;
    const start = this.#u32[BLOCK_START];
    return this.#u32[(start + block.count) >>> 2] - ((operation - start) / OP_BYTES - 1);
  }
  /** The running operation did not retire, and nothing runs any more. */
  giveBack(): void {
    this.#i32[BUDGET] += this.#unexecuted();
    this.#i32[OPERATION] = 0;
  }

  divert(): void {
    this.#stash += this.#i32[BUDGET];
    this.#i32[BUDGET] = 0;
    this.isDiverted = true;
  }

  leave(): void {
    this.hasLeft = true;
    this.#leftRipLow = this.#u32[RIP];
    this.#leftRipHigh = this.#u32[RIP + 1];
    this.#stash += this.#unexecuted();
    this.#i32[OPERATION] = 0;
    this.divert();
  }
  /** Generated code went on to the next instruction when it ran out of budget. */
  backToExit(): void {
    this.#u32[RIP] = this.#leftRipLow;
    this.#u32[RIP + 1] = this.#leftRipHigh;
  }

  requestStop(): void {
    this.isStopRequested = true;
    this.endBlockEarly();
  }
  /** Nothing runs after the running operation, if there is one. */
  endBlockEarly(): void {
    const operation = this.#u32[OPERATION];
    if (operation === 0) return;
    // The block's rest must not run: the operation that follows gives way, and is put back when generated code has returned.
    const next = operation + OP_BYTES + op.handler;
    if (this.#cutAt === 0) {
      this.#cutAt = next;
      this.#cutHandler = this.#u16[next >>> 1];
      cutAfter(this.#u16, operation);
    }
    // Giving way, the operation behind gives back what the block has left of the budget: that is put aside as well
    const rest = this.#unexecuted() - 1;
    this.divert();
    this.#stash += rest;
    this.#i32[BUDGET] -= rest;
  }

  retired(): number {
    return this.#granted - this.#i32[BUDGET] - this.#stash - this.#unexecuted();
  }

  instructionsRetired(): number {
    const further = this.#u32[FURTHER_ITERATIONS] + this.#u32[FURTHER_ITERATIONS + 1] * 2 ** 32;
    return this.retired() - this.#charged - further;
  }

  /** An event was injected that an instruction caused whose own attempt at it has exited: that instruction has retired now. */
  countInjected(): void {
    this.#granted++;
  }

  /**
   * Call at each event. A handler whose first instruction faults is entered for ever without an instruction that retires, and time would
   * stand still. So events that follow each other like that take time as instructions do, once there are more than any sane guest has.
   */
  chargeStorm(): void {
    const retired = this.retired();
    if (retired !== this.#stormAt) {
      this.#stormAt = retired;
      this.#storm = 0;
    } else if (++this.#storm > STORM_BEGINS) {
      const fromStash = Math.min(this.#stash, STORM_COST);
      const fromBudget = Math.max(0, Math.min(this.#i32[BUDGET], STORM_COST - fromStash));
      this.#stash -= fromStash;
      this.#i32[BUDGET] -= fromBudget;
      this.#charged += fromStash + fromBudget;
      this.#stormAt = this.retired();
    }
  }
}
