/**
 * What a region remembers of address translation: for accesses through the same base register, the page that was reached last
 * and where it lies. One comparison then takes the place of a probe of the TLB.
 *
 * A place that is remembered is used until the region is left. That is no longer than a TLB may keep a translation: INVLPG, loads
 * of control registers and everything else after which another translation must be seen end the region, and so does what makes
 * a page one that code was decoded from. What happens within a region, a miss of the TLB, adds translations and takes none away.
 */
import { MOST_PLACES, PLACE_BYTES, state } from "../cpu-state.ts";

/** Two words of the state block, by their offsets. */
export interface Place {
  /** i64: linear address of the page, or NO_PAGE. */
  readonly page: number;
  /** i32: bank offset = low 32 bits of the linear address + addend. */
  readonly addend: number;
}

/** No linear address with its bits below 12 cleared, those of an operand's alignment excepted, is equal to it. */
export const NO_PAGE = 0x800;

/** Largest operand whose alignment the comparison checks, in bytes. */
export const LARGEST_CACHED = 32;

/** Remembering pays from the second access on. A loop's accesses count as so many. */
const LOOP_WEIGHT = 8;
const LEAST_WEIGHT = 2;

export class PlaceCache {
  readonly #weights = new Map<string, number>();
  readonly #places = new Map<string, Place>();

  /** An access to what `key` names, in so many loops, is part of the region. */
  note(key: string, loopDepth: number): void {
    this.#weights.set(key, (this.#weights.get(key) ?? 0) + LOOP_WEIGHT ** Math.min(loopDepth, 4));
  }
  /** After every access was noted: gives locals to those that are worth it. */
  choose(): void {
    const worth = [...this.#weights].filter(([, weight]) => weight >= LEAST_WEIGHT).sort(([, a], [, b]) => b - a);
    worth.slice(0, MOST_PLACES).forEach(([key], i) => {
      const page = state.places + i * PLACE_BYTES;
      this.#places.set(key, { page, addend: page + 8 });
    });
  }
  /** Undefined where the access is not worth a place. */
  find(key: string): Place | undefined {
    return this.#places.get(key);
  }
  all(): Iterable<Place> {
    return this.#places.values();
  }
}
