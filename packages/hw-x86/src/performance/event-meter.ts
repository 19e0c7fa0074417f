/**
 * What a logical CPU has done, by privilege: instructions that retired, and ticks of the TSC that passed while it was not halted. Both
 * come from what the engine and the clock count anyhow; the meter looks at them between two instructions, when somebody asks and
 * where privilege changes. Software in root mode retires no instructions of this machine, but its time passes at CPL 0.
 */
import { state } from "../engine/cpu-state.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";

/** Index by privilege: CPL 0, and CPL 1 to 3. */
export const SUPERVISOR = 0;
export const USER = 1;

const CPL = state.cpl >>> 2;

export class EventMeter {
  /** Since the last `clear`. */
  readonly instructions = new Float64Array(2);
  readonly cycles = new Float64Array(2);
  readonly #cpu: RootCpu;
  /** That of the guest that runs; undefined in root mode. */
  #engine: GuestEngine | undefined;
  #instructionsAt = 0;
  #tscAt = 0;

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  /** From now on this engine runs, or root mode does. What passed before `restart` is not counted. */
  turnTo(engine: GuestEngine | undefined): void {
    this.#engine = engine;
  }

  /** What is now is the beginning. `running`: 1 where the instruction at hand is not to be counted. */
  restart(running: number): void {
    this.#instructionsAt = this.#retired() + running;
    this.#tscAt = this.#cpu.rdtsc() + this.#cpu.clock.ticksFor(running);
  }

  /** Counts what has passed since the last time as done at the present CPL. `running`: 1 where the instruction at hand belongs to it. */
  sample(running: number): void {
    const engine = this.#engine;
    const level = engine !== undefined && engine.u32[CPL] !== 0 ? USER : SUPERVISOR;
    const retired = this.#retired() + running;
    const tsc = this.#cpu.rdtsc() + this.#cpu.clock.ticksFor(running);
    (this.instructions[level] as number) += retired - this.#instructionsAt;
    (this.cycles[level] as number) += tsc - this.#tscAt;
    this.#instructionsAt = retired;
    this.#tscAt = tsc;
  }

  clear(): void {
    this.instructions.fill(0);
    this.cycles.fill(0);
  }

  #retired(): number {
    return this.#engine?.instructionsRetired() ?? 0;
  }
}
