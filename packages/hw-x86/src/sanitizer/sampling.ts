/** For findings of the hardware sanitizer that take time to look for: each time at first, and then at one of so many. */
export class Sampling {
  readonly #first: number;
  readonly #every: number;
  #times = 0;

  constructor(first: number, every: number) {
    this.#first = first;
    this.#every = every;
  }

  /** This time it is looked for. */
  isDue(): boolean {
    const time = this.#times++;
    return time < this.#first || time % this.#every === 0;
  }
}
