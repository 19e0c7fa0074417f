/**
 * The external interrupts that wait at a machine's CPUs, one cache line each in shared memory, where any thread may put one: a flag
 * that a CPU can sleep on, and a bit for each vector.
 */

const LINE_WORDS = 16;
export const LINE_BYTES = LINE_WORDS * 4;
const FLAG = 0;
/** Bits of the flag: a maskable interrupt waits; the doorbell of AMD's virtual interrupt controller has rung. */
const RAISED = 1;
const DOORBELL = 2;
/** A nonmaskable interrupt waits; a processor holds one. */
const NMI = 4;
const VECTORS = 1;
const VECTOR_WORDS = 8;

export class InterruptLines {
  readonly #words: Int32Array;
  readonly #own: number;

  constructor(shared: SharedArrayBuffer, cpu: number) {
    this.#words = new Int32Array(shared);
    this.#own = cpu * LINE_WORDS;
  }

  raise(cpu: number, vector: number): void {
    const line = cpu * LINE_WORDS;
    Atomics.or(this.#words, line + VECTORS + (vector >>> 5), 1 << (vector & 31));
    Atomics.or(this.#words, line + FLAG, RAISED);
    Atomics.notify(this.#words, line + FLAG);
  }

  /** No interrupt: a guest there looks at its local APIC anew, and without one nothing comes of it. */
  ring(cpu: number): void {
    const line = cpu * LINE_WORDS;
    if (line >= this.#words.length) return;
    Atomics.or(this.#words, line + FLAG, DOORBELL);
    Atomics.notify(this.#words, line + FLAG);
  }
  /** Whether it has rung since the last time. */
  answerDoorbell(): boolean {
    if ((Atomics.load(this.#words, this.#own + FLAG) & DOORBELL) === 0) return false;
    Atomics.and(this.#words, this.#own + FLAG, ~DOORBELL);
    return true;
  }

  /** CPUs of the machine. */
  get count(): number {
    return this.#words.length / LINE_WORDS;
  }

  raiseNmi(cpu: number): void {
    const line = cpu * LINE_WORDS;
    Atomics.or(this.#words, line + FLAG, NMI);
    Atomics.notify(this.#words, line + FLAG);
  }
  isNmiRaised(): boolean {
    return (Atomics.load(this.#words, this.#own + FLAG) & NMI) !== 0;
  }
  /** False: there was none. */
  takeNmi(): boolean {
    return (Atomics.and(this.#words, this.#own + FLAG, ~NMI) & NMI) !== 0;
  }

  isRaised(): boolean {
    return (Atomics.load(this.#words, this.#own + FLAG) & RAISED) !== 0;
  }

  /** Highest vector that waits, -1 when there is none. */
  highest(): number {
    for (let i = VECTOR_WORDS - 1; i >= 0; i--) {
      const word = Atomics.load(this.#words, this.#own + VECTORS + i);
      if (word !== 0) return i * 32 + 31 - Math.clz32(word);
    }
    return -1;
  }

  /** Takes one that waits. */
  take(vector: number): void {
    // The flag goes down first: whoever raises another meanwhile puts it up again, and so does what is left
    Atomics.and(this.#words, this.#own + FLAG, ~RAISED);
    Atomics.and(this.#words, this.#own + VECTORS + (vector >>> 5), ~(1 << (vector & 31)));
    if (this.highest() >= 0) Atomics.or(this.#words, this.#own + FLAG, RAISED);
  }

  /** Takes all. */
  lower(): void {
    Atomics.store(this.#words, this.#own + FLAG, 0);
    for (let i = 0; i < VECTOR_WORDS; i++) Atomics.store(this.#words, this.#own + VECTORS + i, 0);
  }

  /** What is raised, for `wait`. */
  get seen(): number {
    return Atomics.load(this.#words, this.#own + FLAG);
  }
  /**
   * Blocks the thread until something more than was `seen`, which whoever waits has looked at, is raised at this CPU, or its doorbell rings,
   * or the time is over.
   */
  wait(milliseconds: number, seen: number): void {
    Atomics.wait(this.#words, this.#own + FLAG, seen, milliseconds);
  }
}
