/**
 * How many instructions a guest runs under the wall clock before the CPU looks again at what is pending. What is fixed is the time
 * between two looks, since that is how late an interrupt can be; the guest's speed, which says how many instructions that is,
 * is learned from the slices before: translated loops retire twenty times as many as interpreted code.
 */

/** Longest time between two looks, in milliseconds. */
const LONGEST_MS = 0.5;
const SHORTEST = 256;
/** Guest instructions a millisecond: interpreted code, which is assumed at first. */
const FIRST_PER_MS = 100_000;
/** Code that does little but read the TSC, and the like. A slice in which other threads had the processor is taken for no slower. */
const SLOWEST_PER_MS = 20_000;
/**
 * As fast as a guest is believed to be. Loops are faster, but a guest that falls from such a loop into interpreted code would hold its
 * CPU for a slice of the loop's length.
 */
const FASTEST_PER_MS = 400_000;

export class SliceLength {
  #perMs = FIRST_PER_MS;

  /** Instructions to run when something is due in so many milliseconds; Infinity: nothing is. */
  until(ms: number): number {
    return Math.max(SHORTEST, Math.ceil(Math.min(ms, LONGEST_MS) * this.#perMs));
  }

  /**
   * A whole slice of so many instructions took so many milliseconds. The speed is believed to fall at once, for instance to that of
   * code that is not translated yet, and to rise by steps, so that few slices are longer than they were meant to be.
   */
  learn(instructions: number, ms: number): void {
    const perMs = Math.min(instructions / ms, this.#perMs * 2);
    this.#perMs = Math.min(Math.max(perMs, SLOWEST_PER_MS), FASTEST_PER_MS);
  }
}
