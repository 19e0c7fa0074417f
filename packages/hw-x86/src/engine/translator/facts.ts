/**
 * What is known at a place of a region without asking again: something that the code before it found out, where the region would
 * have been left otherwise.
 */

/** Of the whole state. sse, avx: SSE and VEX-encoded vector instructions are enabled. usual: MXCSR rounds to nearest and masks all exceptions. */
export type StateFact = "sse" | "avx" | "usual";
/** Of a vector: the numbers that the suffix names (low single, all singles, low double, all doubles) are neither denormal nor NaN. */
export type VectorFact = "tame SS" | "tame PS" | "tame SD" | "tame PD";

const IMPLIED: Readonly<Partial<Record<VectorFact, VectorFact>>> = { "tame PS": "tame SS", "tame PD": "tame SD" };
const NONE: ReadonlySet<VectorFact> = new Set();

export class Facts {
  #state = new Set<StateFact>();
  /** By number of the XMM register. */
  #registers = new Map<number, ReadonlySet<VectorFact>>();

  /** Nothing is known where other paths come in. */
  forgetAll(): void {
    this.#state.clear();
    this.#registers.clear();
  }
  /** For what is emitted of one path, to be put back for another. */
  save(): () => void {
    const state = new Set(this.#state);
    const registers = new Map(this.#registers);
    return () => {
      this.#state = new Set(state);
      this.#registers = new Map(registers);
    };
  }

  knows(fact: StateFact): boolean {
    return this.#state.has(fact);
  }
  learn(fact: StateFact): void {
    this.#state.add(fact);
  }
  forget(fact: StateFact): void {
    this.#state.delete(fact);
  }

  ofRegister(index: number): ReadonlySet<VectorFact> {
    return this.#registers.get(index) ?? NONE;
  }
  setRegister(index: number, facts: ReadonlySet<VectorFact>): void {
    this.#registers.set(index, facts);
  }
}

/** `facts` and one more, with what that implies. */
export function withFact(facts: ReadonlySet<VectorFact>, fact: VectorFact): ReadonlySet<VectorFact> {
  const implied = IMPLIED[fact];
  return new Set(implied === undefined ? [...facts, fact] : [...facts, fact, implied]);
}
export { NONE as NO_FACTS };
