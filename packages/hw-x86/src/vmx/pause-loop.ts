/**
 * PAUSE-loop exiting: PAUSEs at CPL 0 that follow each other within PLE_Gap are a loop, which exits when it has lasted longer than
 * PLE_Window. Source: Intel SDM Vol. 3C, Changes to Instruction Behavior in VMX Non-Root Operation.
 */
import type { RootCpu } from "../root-interface.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

export class PauseLoop {
  readonly #cpu: RootCpu;
  readonly #vmcs: Vmcs;
  #first = Number.NEGATIVE_INFINITY;
  #last = Number.NEGATIVE_INFINITY;

  constructor(cpu: RootCpu, vmcs: Vmcs) {
    this.#cpu = cpu;
    this.#vmcs = vmcs;
  }

  /** VM entry: the next PAUSE begins a loop. */
  enter(): void {
    this.#last = Number.NEGATIVE_INFINITY;
  }

  /** A PAUSE runs at CPL 0: true when it exits. */
  isTooLong(): boolean {
    const now = this.#cpu.rdtsc();
    if (now - this.#last > this.#vmcs.low(slot.PLE_GAP)) this.#first = now;
    this.#last = now;
    return now - this.#first > this.#vmcs.low(slot.PLE_WINDOW);
  }
}
