/** One performance counter: 48 bits, and what it counts. */
import { type EventMeter, SUPERVISOR, USER } from "./event-meter.ts";

export const COUNTER_BITS = 48;
export const COUNTER_VALUES = 2 ** COUNTER_BITS;
export const COUNTER_MASK = (1n << BigInt(COUNTER_BITS)) - 1n;

/** Events that the machine counts exactly, whatever runs the guest's code. */
export type CountedEvent = "instructions" | "cycles";

/** How an event-select register has an event counted. */
export interface EventSelection {
  /** undefined: an event that this machine does not count. */
  readonly event: CountedEvent | undefined;
  readonly supervisor: boolean;
  readonly user: boolean;
  /** Counter mask: cycles count in which the event occurs at least so often; 0: every occurrence counts. */
  readonly threshold: number;
  /** With a threshold: cycles count in which it occurs less often. */
  readonly isInverted: boolean;
  /** Counts how often the condition begins to hold, which this machine does not know. */
  readonly isEdge: boolean;
}

export class Counter {
  /** Below 2^48. */
  value = 0;
  isOn = false;
  /** What the counter adds for each instruction (1, 0 or -1) and for each cycle (1 or 0). */
  #perInstruction = 0;
  #perCycle = 0;
  #supervisor = false;
  #user = false;

  /** The machine retires at most one instruction in a cycle, and each cycle is one occurrence of "cycles". */
  select({ event, supervisor, user, threshold, isInverted, isEdge }: EventSelection): void {
    this.#supervisor = supervisor;
    this.#user = user;
    this.#perInstruction = 0;
    this.#perCycle = 0;
    if (event === undefined || isEdge || (!supervisor && !user)) return;
    if (threshold === 0 || (threshold === 1 && !isInverted)) {
      if (event === "instructions") this.#perInstruction = 1;
      else this.#perCycle = 1;
    } else if (isInverted) {
      // Cycles in which nothing retires; or all cycles, none of which has two occurrences
      if (threshold > 1 || event === "instructions") this.#perCycle = 1;
      if (threshold === 1 && event === "instructions") this.#perInstruction = -1;
    }
  }

  /** It counts at one privilege only, so that changes of privilege matter. */
  get tellsPrivilege(): boolean {
    return this.isOn && this.#supervisor !== this.#user;
  }

  /** Adds what the meter has. True: the counter has passed its last value, and goes on from 0. */
  add(meter: EventMeter): boolean {
    if (!this.isOn) return false;
    let sum = 0;
    if (this.#supervisor) sum += this.#of(meter, SUPERVISOR);
    if (this.#user) sum += this.#of(meter, USER);
    this.value += sum;
    if (this.value < COUNTER_VALUES) return false;
    this.value -= COUNTER_VALUES;
    return true;
  }
  #of(meter: EventMeter, level: number): number {
    return this.#perInstruction * (meter.instructions[level] as number) + this.#perCycle * (meter.cycles[level] as number);
  }

  /** The least number of instructions after which it may overflow; Infinity where only time decides. */
  get instructionsLeft(): number {
    return this.isOn && this.#perCycle === 0 && this.#perInstruction === 1
      ? COUNTER_VALUES - this.value
      : Number.POSITIVE_INFINITY;
  }
  /** The least number of TSC ticks after which it may overflow. */
  get cyclesLeft(): number {
    return this.isOn && this.#perCycle === 1 ? COUNTER_VALUES - this.value : Number.POSITIVE_INFINITY;
  }
}
