import type { MoveReport, MoveStep } from "../control/types.ts";

/** Measures the steps of a move on the host's real clock. */
export class StepRecorder {
  readonly steps: MoveReport["steps"] = [];
  #step: MoveStep = "check";
  #startedMs = performance.now();
  #stoppedMs: number | undefined;
  blackoutUs = 0;

  get step(): MoveStep {
    return this.#step;
  }

  begin(step: MoveStep): void {
    if (step === this.#step) return;
    this.#close();
    this.#step = step;
  }

  /** The vCPUs are asked to stop now. */
  stop(): void {
    this.#stoppedMs = performance.now();
  }

  /** They go on now, on whichever side. */
  resume(): void {
    if (this.#stoppedMs === undefined) return;
    this.blackoutUs = microseconds(performance.now() - this.#stoppedMs);
    this.#stoppedMs = undefined;
  }

  end(): void {
    this.resume();
    this.#close();
  }

  #close(): void {
    const now = performance.now();
    this.steps.push({ step: this.#step, durationUs: microseconds(now - this.#startedMs) });
    this.#startedMs = now;
  }
}

function microseconds(durationMs: number): number {
  return Math.round(durationMs * 10_000) / 10;
}
