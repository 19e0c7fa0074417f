/**
 * Intercepted PAUSEs exit only when there were more of them than the filter count allows, close to each other if there is a
 * threshold. Source: AMD64 APM Vol. 2, Pause Intercept Filtering.
 */
import type { RootCpu } from "../root-interface.ts";
import { Control } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

export class PauseFilter {
  readonly #cpu: RootCpu;
  #count = 0;
  #threshold = 0;
  #left = 0;
  #last = 0;

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  load(vmcb: Vmcb): void {
    const word = vmcb.low(Control.PAUSE_FILTER_THRESHOLD);
    this.#threshold = word & 0xffff;
    this.#count = word >>> 16;
    this.#left = this.#count;
    this.#last = this.#cpu.rdtsc();
  }

  /** A PAUSE runs: true when it exits. */
  isExhausted(): boolean {
    if (this.#threshold !== 0) {
      const now = this.#cpu.rdtsc();
      if (now - this.#last > this.#threshold) this.#left = this.#count;
      this.#last = now;
    }
    if (this.#left === 0) return true;
    this.#left--;
    return false;
  }
}
