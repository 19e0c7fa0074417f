/**
 * Time of a logical CPU. `wall`: the TSC is the host's monotonic time since the machine's power-on, so that the CPUs of a
 * machine agree. `icount`: the TSC advances with this CPU's retired guest instructions, and idle time is skipped.
 */
import type { MachineDescription } from "./machine.ts";

const random = new BigUint64Array(1);
/** Taken once: Node's global is a getter, and every VM exit asks for the time. */
const hostClock = performance;

export class Clock {
  readonly isWall: boolean;
  readonly tscKhz: number;
  readonly #ticksPerInstruction: number;
  readonly #originMs: number;
  #last = 0;
  #skipped = 0;

  constructor(machine: MachineDescription) {
    this.isWall = machine.clock === "wall";
    this.tscKhz = machine.tscKhz;
    this.#ticksPerInstruction = machine.ticksPerInstruction;
    // performance.now counts from a different instant in each thread; the difference is taken once, so that its rounding
    // (about 0.2 us, timeOrigin being a large number) is a constant and the TSC stays monotonic and fine-grained
    this.#originMs = machine.poweredOnMs - hostClock.timeOrigin;
  }

  /** Whole ticks since power-on. `retired`: this CPU's retired instructions; matters under `icount` only. */
  now(retired: number): number {
    if (!this.isWall) return this.#skipped + retired * this.#ticksPerInstruction;
    const ticks = Math.floor((hostClock.now() - this.#originMs) * this.tscKhz);
    if (ticks > this.#last) this.#last = ticks;
    return this.#last;
  }

  /** 64 random bits; 0 under `icount`, where chance is to come from the guest's state alone. */
  entropy(): bigint {
    if (!this.isWall) return 0n;
    crypto.getRandomValues(random);
    return random[0] as bigint;
  }

  /** `icount`: ticks that pass while so many instructions retire; 0 in wall time, which does not go by instructions. */
  ticksFor(instructions: number): number {
    return this.isWall ? 0 : instructions * this.#ticksPerInstruction;
  }

  /** `icount`: makes the TSC `target` without instructions, if that is ahead. */
  skipTo(target: number, retired: number): void {
    if (this.isWall) return;
    const ahead = target - this.now(retired);
    if (ahead > 0 && ahead !== Number.POSITIVE_INFINITY) this.#skipped += ahead;
  }

  /** `icount`: the instruction at hand, though it retires, is not to move the TSC. */
  holdBack(): void {
    if (!this.isWall) this.#skipped -= this.#ticksPerInstruction;
  }

  /** `icount`: the least number of instructions after which `ticks` more have passed. */
  instructionsFor(ticks: number): number {
    return Math.ceil(ticks / this.#ticksPerInstruction);
  }
}

/** Milliseconds since the epoch from the clock that `Clock` reads, for a machine's power-on. */
export function hostTimeMs(): number {
  return hostClock.timeOrigin + hostClock.now();
}
