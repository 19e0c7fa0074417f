/**
 * After HLT the vCPU looks for a wake-up for a while before it blocks: waking from a short halt is then cheap. How long follows
 * what halts have cost lately. It polls only while nobody else has a use for the CPU, as Linux does: other vCPUs of the VM go before.
 * Time is the kernel's clock. Where that stands still while nobody executes (icount) there is nothing to gain, and polling ends at
 * once: the guest sees no difference.
 */

import type { LogicalCpu } from "@mkvm/hw-x86";
import type { Kernel } from "@mkvm/kvm-abi";
import type { VcpuCounters } from "@mkvm/kvm-core";
import type { Vac } from "@mkvm/vac";

const FIRST_POLL_NS = 10_000;
const GROWTH = 2;

export class HaltPolling {
  readonly #kernel: Kernel<Vac, LogicalCpu>;
  readonly #limitNs: number;
  #currentNs = 0;
  readonly #statistics: Pick<VcpuCounters, "polled">;

  /** `limitNs` 0: no polling. */
  constructor(kernel: Kernel<Vac, LogicalCpu>, limitNs: number, statistics: Pick<VcpuCounters, "polled">) {
    this.#statistics = statistics;
    this.#kernel = kernel;
    this.#limitNs = limitNs;
  }

  /** Polls until `awake` says so or time is up; true when it woke. */
  async poll(awake: () => boolean): Promise<boolean> {
    const { clock, scheduler } = this.#kernel;
    const start = clock.monotonicNs();
    let now = start;
    let polled = false;
    while (now - start < this.#currentNs && scheduler.singleTaskRunning()) {
      polled = true;
      scheduler.handleInterrupts();
      await scheduler.yield();
      if (awake()) {
        this.#statistics.polled(clock.monotonicNs() - start, true);
        return true;
      }
      const before = now;
      now = clock.monotonicNs();
      if (now === before) break;
    }
    if (polled) this.#statistics.polled(now - start, false);
    return false;
  }

  /** A halt is over that lasted `durationNs`, polling included: short ones make polling longer, long ones end it. */
  learn(durationNs: number): void {
    if (durationNs <= this.#currentNs) return;
    if (durationNs > this.#limitNs) this.#currentNs = 0;
    else this.#currentNs = Math.min(this.#limitNs, Math.max(FIRST_POLL_NS, this.#currentNs * GROWTH));
  }
}
