/** Blocking of interrupts and debug traps for one instruction, by STI and MOV SS (Intel SDM Vol. 3C, Guest Non-Register State). */
import type { Cpu } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import type { RunControl } from "./run-control.ts";
import { Flag } from "./system/bits.ts";

const INTERRUPTIBILITY = state.interruptibility >>> 2;
const SYSTEM_FLAGS = state.systemFlags >>> 2;
export const MOV_SS_SHADOW = 2;
export const SHADOWS = 3;
const STI_SHADOW = 1;
const NONE = -1;

export class InterruptShadow {
  readonly #i32: Int32Array;
  readonly #control: RunControl;
  /**
   * Blocking by STI holds while exactly so many instructions have retired; NONE where the bit in the state block is exact. Hardly
   * anybody looks at the bit before it is over, so what follows STI need not run by itself: those who look settle it first.
   */
  #end = NONE;

  constructor(cpu: Cpu, control: RunControl) {
    this.#i32 = cpu.i32;
    this.#control = control;
  }

  /** The bits in the state block are exact. */
  begin(): void {
    this.#end = NONE;
  }

  next(): void {
    if ((this.#i32[SYSTEM_FLAGS] & Flag.TF) === 0) this.#end = this.#control.retired() + 1;
  }

  settle(): void {
    if (this.#end === NONE || this.#control.retired() === this.#end) return;
    this.#over();
  }
  #over(): void {
    this.#i32[INTERRUPTIBILITY] &= ~STI_SHADOW;
    this.#end = NONE;
  }

  /** The next instruction must run by itself, so that what shadows it ends with it. Settle first. */
  get needsStep(): boolean {
    return (this.#i32[INTERRUPTIBILITY] & SHADOWS) !== 0 && this.#end === NONE;
  }

  /** A helper that ended its block left shadows or TF behind: the next instruction is a step, unless it merely is in STI's shadow. */
  settleHelper(): void {
    const control = this.#control;
    // An instruction that exits has not run: what shadows it stays
    if (control.hasLeft) return;
    if (this.#end !== NONE) {
      if (this.#end <= control.retired()) this.#over();
      const others = this.#i32[INTERRUPTIBILITY] & SHADOWS & ~STI_SHADOW;
      if (others === 0 && (this.#i32[SYSTEM_FLAGS] & Flag.TF) === 0) return;
    }
    control.divert();
  }
}
