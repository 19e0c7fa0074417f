/**
 * What is known at a place of a region without asking again: something that the code before it found out, where the region would
 * have been left otherwise, or what it wrote to a register.
 */
import type { Size } from "../emitter.ts";

/** Of the whole state. sse, avx: SSE and VEX-encoded vector instructions are enabled. usual: MXCSR rounds to nearest and masks all exceptions. */
export type StateFact = "sse" | "avx" | "usual";
/** Of a vector: the numbers that the suffix names (low single, all singles, low double, all doubles) are neither denormal nor NaN. */
export type VectorFact = "tame SS" | "tame PS" | "tame SD" | "tame PD";

/** Of a general register. */
export interface GeneralFact {
  /** Bits above this one are zero. */
  readonly bits: number;
  /** Its low bits, so many, are all like the one in this local, an i32; the others are zero. */
  readonly spread: { readonly size: Size; readonly bit: number } | undefined;
}
const ANYTHING: GeneralFact = { bits: 64, spread: undefined };

const IMPLIED: Readonly<Partial<Record<VectorFact, VectorFact>>> = { "tame PS": "tame SS", "tame PD": "tame SD" };
const NONE: ReadonlySet<VectorFact> = new Set();

export class Facts {
  #state = new Set<StateFact>();
  /** By number of the XMM register. */
  #vectors = new Map<number, ReadonlySet<VectorFact>>();
  /** By number of the general register. */
  #general = new Map<number, GeneralFact>();

  /** Nothing is known where other paths come in. */
  forgetAll(): void {
    this.#state.clear();
    this.#vectors.clear();
    this.#general.clear();
  }
  /** For what is emitted of one path, to be put back for another. */
  save(): () => void {
    const state = new Set(this.#state);
    const vectors = new Map(this.#vectors);
    const general = new Map(this.#general);
    return () => {
      this.#state = new Set(state);
      this.#vectors = new Map(vectors);
      this.#general = new Map(general);
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

  ofVector(index: number): ReadonlySet<VectorFact> {
    return this.#vectors.get(index) ?? NONE;
  }
  setVector(index: number, facts: ReadonlySet<VectorFact>): void {
    this.#vectors.set(index, facts);
  }

  ofGeneral(index: number): GeneralFact {
    return this.#general.get(index) ?? ANYTHING;
  }
  /** The register was written; without a fact nothing is known of it any more. */
  setGeneral(index: number, fact: GeneralFact = ANYTHING): void {
    this.#general.set(index, fact);
  }
}

/** `facts` and one more, with what that implies. */
export function withFact(facts: ReadonlySet<VectorFact>, fact: VectorFact): ReadonlySet<VectorFact> {
  const implied = IMPLIED[fact];
  return new Set(implied === undefined ? [...facts, fact] : [...facts, fact, implied]);
}
export { NONE as NO_FACTS };
