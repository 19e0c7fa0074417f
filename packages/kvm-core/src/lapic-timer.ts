/** Timer of a local APIC. It counts at 1 GHz before the divider. Source: Intel SDM Vol. 3A, APIC Timer. */
import { LapicTimerMode, NO_DEADLINE, type StructValue, type VcpuLapic } from "@mkvm/kvm-abi";
import type { LapicHost } from "./lapic.ts";

type Saved = StructValue<(typeof VcpuLapic)["fixed"]["fields"]>;

/** A guest that asks for less would only keep the host busy. */
const MIN_PERIOD_NS = 200_000;

export interface LapicTimer {
  readonly mode: number;
  /** True when the change of mode disarmed the timer. */
  setMode(mode: number): boolean;
  /** Value of the divide configuration register. A running count goes on with what is left of it. */
  setDivide(register: number): void;
  /** Initial count was written; 0 stops. */
  start(initialCount: number): void;
  /** As `start`, but with `remaining` left of it; 0 left of a one-shot: it has expired. */
  resume(initialCount: number, remaining: number): void;
  currentCount(): number;
  readonly tscDeadline: bigint;
  setTscDeadline(value: bigint): void;
  guestTscChanged(): void;
  reset(): void;
  save(): Pick<Saved, "timer_mode" | "deadline" | "period_ns" | "tsc_deadline" | "divide_count">;
  restore(value: Saved): void;
  dispose(): void;
}

function divideCount(register: number): number {
  const code = (register & 3) | ((register >> 1) & 4);
  return code === 7 ? 1 : 2 << code;
}

export function createLapicTimer(host: Pick<LapicHost, "clock" | "guestTsc" | "guestTscKhz">, expired: () => void): LapicTimer {
  const timer = host.clock.createTimer(fire);
  let mode: number = LapicTimerMode.oneShot;
  let divide = 2;
  let periodNs = 0;
  let tscDeadline = 0n;
  /** Monotonic ns; undefined: not armed. */
  let deadlineNs: number | undefined;

  function arm(at: number): void {
    deadlineNs = at;
    timer.arm(at);
  }
  function disarm(): void {
    deadlineNs = undefined;
    timer.cancel();
  }
  function armTsc(): void {
    const ticks = tscDeadline - host.guestTsc();
    const now = host.clock.monotonicNs();
    // Rounded up, so that the TSC has reached the deadline when the timer fires
    const delayNs = ticks <= 0n ? 0 : Math.ceil((Number(ticks) * 1e6) / host.guestTscKhz());
    arm(Math.min(now + delayNs, Number.MAX_SAFE_INTEGER)); // some guests write "never" as the largest number
  }
  function fire(): void {
    if (deadlineNs === undefined) return;
    if (mode === LapicTimerMode.tscDeadline) {
      if (host.guestTsc() < tscDeadline) {
        armTsc();
        return;
      }
      tscDeadline = 0n;
      deadlineNs = undefined;
    } else if (mode === LapicTimerMode.periodic && periodNs > 0) {
      // Ticks that are long gone are one tick: an APIC has one bit for them
      const late = host.clock.monotonicNs() - deadlineNs;
      arm(deadlineNs + periodNs * (1 + Math.max(0, Math.floor(late / periodNs))));
    } else deadlineNs = undefined;
    expired();
  }
  const period = (initialCount: number) => {
    const ns = initialCount * divide;
    return mode === LapicTimerMode.periodic ? Math.max(ns, MIN_PERIOD_NS) : ns;
  };

  return {
    get mode() {
      return mode;
    },
    setMode(next) {
      const changed = mode !== next;
      const disarms = changed && (mode === LapicTimerMode.tscDeadline || next === LapicTimerMode.tscDeadline);
      mode = next;
      if (!disarms) return false;
      periodNs = 0;
      tscDeadline = 0n;
      disarm();
      return true;
    },
    setDivide(register) {
      const next = divideCount(register);
      if (next === divide) return;
      const now = host.clock.monotonicNs();
      const left = deadlineNs === undefined || mode === LapicTimerMode.tscDeadline ? undefined : deadlineNs - now;
      periodNs = Math.round((periodNs / divide) * next);
      if (left !== undefined) arm(now + Math.max(0, Math.round((left / divide) * next)));
      divide = next;
    },
    start(initialCount) {
      periodNs = period(initialCount);
      if (initialCount === 0) disarm();
      else arm(host.clock.monotonicNs() + periodNs);
    },
    resume(initialCount, remaining) {
      if (mode === LapicTimerMode.tscDeadline) return;
      periodNs = initialCount === 0 ? 0 : period(initialCount);
      if (initialCount === 0 || (remaining === 0 && mode === LapicTimerMode.oneShot)) disarm();
      else arm(host.clock.monotonicNs() + (remaining === 0 ? periodNs : remaining * divide));
    },
    currentCount() {
      if (deadlineNs === undefined || mode === LapicTimerMode.tscDeadline) return 0;
      const left = Math.max(0, deadlineNs - host.clock.monotonicNs());
      return Math.min(0xffff_ffff, Math.floor(left / divide));
    },
    get tscDeadline() {
      return mode === LapicTimerMode.tscDeadline ? tscDeadline : 0n;
    },
    setTscDeadline(value) {
      if (mode !== LapicTimerMode.tscDeadline) return;
      tscDeadline = value;
      if (value === 0n) disarm();
      else armTsc();
    },
    guestTscChanged() {
      if (mode === LapicTimerMode.tscDeadline && deadlineNs !== undefined) armTsc();
    },
    reset() {
      mode = LapicTimerMode.oneShot;
      divide = 2;
      periodNs = 0;
      tscDeadline = 0n;
      disarm();
    },
    save: () => ({
      timer_mode: mode,
      deadline: deadlineNs === undefined ? NO_DEADLINE : BigInt(deadlineNs),
      period_ns: BigInt(periodNs),
      tsc_deadline: tscDeadline,
      divide_count: divide,
    }),
    restore(value) {
      mode = value.timer_mode;
      divide = value.divide_count;
      periodNs = Number(value.period_ns);
      tscDeadline = value.tsc_deadline;
      if (value.deadline === NO_DEADLINE) disarm();
      else arm(Number(value.deadline));
    },
    dispose: () => disarm(),
  };
}
