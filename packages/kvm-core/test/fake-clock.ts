import type { Clock, Timer } from "@mkvm/kvm-abi";

/** Time that stands still until `advance` moves it; timers on the way expire at their time, in order. */
export interface FakeClock extends Clock {
  advance(ns: number): void;
  readonly armed: number;
}

export function fakeClock(startNs = 1_000_000_000): FakeClock {
  let now = startNs;
  const timers: { deadlineNs: number | undefined; expired: () => void }[] = [];
  return {
    monotonicNs: () => now,
    realtimeNs: () => 1_700_000_000_000_000_000n + BigInt(now),
    createTimer(expired): Timer {
      const timer = { deadlineNs: undefined as number | undefined, expired };
      timers.push(timer);
      return {
        arm(deadlineNs) {
          timer.deadlineNs = deadlineNs;
        },
        cancel() {
          timer.deadlineNs = undefined;
        },
        get deadlineNs() {
          return timer.deadlineNs;
        },
      };
    },
    advance(ns) {
      const end = now + ns;
      for (;;) {
        const due = timers
          .filter((timer) => timer.deadlineNs !== undefined && timer.deadlineNs <= end)
          .sort((a, b) => a.deadlineNs! - b.deadlineNs!)[0];
        if (!due) break;
        now = Math.max(now, due.deadlineNs!);
        due.deadlineNs = undefined;
        due.expired();
      }
      now = end;
    },
    get armed() {
      return timers.filter((timer) => timer.deadlineNs !== undefined).length;
    },
  };
}
