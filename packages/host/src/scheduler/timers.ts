import type { Timer } from "@mkvm/kvm-abi";

interface Armed {
  deadlineNs: number;
  /** Among timers with one deadline the one that was made first comes first, whenever they were armed. */
  order: number;
  /** Cleared by a cancel between becoming due and running. */
  live: boolean;
  expired: () => void;
}

/**
 * High-resolution timers of one CPU, in order of deadline and, among equals, of their making: a VM that moves arms its timers anew,
 * and they must fire in the order in which they would have without. There are few (a handful for each vCPU), so a sorted array does.
 */
export class TimerQueue {
  readonly #armed: Armed[] = [];
  readonly #changed: () => void;
  #made = 0;

  /** `changed`: the earliest deadline may be another now. */
  constructor(changed: () => void) {
    this.#changed = changed;
  }

  /** Monotonic nanoseconds; Infinity when nothing is armed. */
  get nextNs(): number {
    return this.#armed[0]?.deadlineNs ?? Number.POSITIVE_INFINITY;
  }

  /** Runs everything that is due. What a timer arms meanwhile waits for the next call, so that this one ends. */
  runDue(nowNs: number): void {
    if (this.nextNs > nowNs) return;
    let due = this.#armed.findIndex((armed) => armed.deadlineNs > nowNs);
    if (due < 0) due = this.#armed.length;
    for (const armed of this.#armed.splice(0, due)) {
      if (armed.live) armed.expired();
    }
  }

  createTimer(expired: () => void): Timer {
    const queue = this;
    const order = this.#made++;
    let current: Armed | undefined;
    return {
      arm(deadlineNs: number) {
        queue.#remove(current);
        current = {
          deadlineNs,
          order,
          live: true,
          expired: () => {
            current = undefined;
            expired();
          },
        };
        queue.#insert(current);
      },
      cancel() {
        queue.#remove(current);
        current = undefined;
      },
      get deadlineNs() {
        return current?.deadlineNs;
      },
    };
  }

  #insert(armed: Armed): void {
    const list = this.#armed;
    let at = list.length;
    while (at > 0 && isLater(list[at - 1]!, armed)) at--;
    list.splice(at, 0, armed);
    if (at === 0) this.#changed();
  }

  #remove(armed: Armed | undefined): void {
    if (!armed) return;
    const at = this.#armed.indexOf(armed);
    // Due in this very moment, and cancelled by an earlier one's function: it must not run.
    armed.live = false;
    if (at < 0) return;
    this.#armed.splice(at, 1);
    if (at === 0) this.#changed();
  }
}

function isLater(a: Armed, b: Armed): boolean {
  return a.deadlineNs > b.deadlineNs || (a.deadlineNs === b.deadlineNs && a.order > b.order);
}
