/**
 * A calm moment of the processor, for a VM to stand still in. V8's threads optimise code that has just become hot, and the main thread takes what a
 * CPU has told it: work of some milliseconds, and a CPU's thread that guests keep busy has it done at the end of its slice, wherever it is
 * then. One that sleeps for a moment before has it done there, and has a new slice.
 */

const sleepMs = 0.05;
/** A sleep that took so much longer tells that others have the processor: their work may not be done. */
const lateMs = 0.15;
const mostSleeps = 4;

const cell = new Int32Array(new SharedArrayBuffer(4));

/** Sleeps until nobody else wants the thread's processor, as far as one can tell: not for long, since VMs of this CPU do not run meanwhile. */
export function waitForCalm(): void {
  for (let sleep = 0; sleep < mostSleeps; sleep++) {
    const began = performance.now();
    Atomics.wait(cell, 0, 0, sleepMs);
    if (performance.now() - began < sleepMs + lateMs) return;
  }
}
