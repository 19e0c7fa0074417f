/** The interrupt lines of a machine's CPUs, one cache line each in shared memory: any thread may raise one. */

const LINE_WORDS = 16;
export const LINE_BYTES = LINE_WORDS * 4;
const IPI = 0;

export class InterruptLines {
  readonly #words: Int32Array;
  readonly #own: number;

  constructor(shared: SharedArrayBuffer, cpu: number) {
    this.#words = new Int32Array(shared);
    this.#own = cpu * LINE_WORDS + IPI;
  }

  raise(cpu: number): void {
    const index = cpu * LINE_WORDS + IPI;
    Atomics.store(this.#words, index, 1);
    Atomics.notify(this.#words, index);
  }

  isRaised(): boolean {
    return Atomics.load(this.#words, this.#own) !== 0;
  }

  lower(): void {
    Atomics.store(this.#words, this.#own, 0);
  }

  /** Blocks the thread until this CPU's line is raised or the time is over. */
  wait(milliseconds: number): void {
    Atomics.wait(this.#words, this.#own, 0, milliseconds);
  }
}
