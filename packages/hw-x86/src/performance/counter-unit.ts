/**
 * The performance counters of a logical CPU, as far as both vendors' are alike: when they count, and that the CPU stops at the
 * instruction that makes one overflow. While no counter is on the unit does nothing.
 */
import { state } from "../engine/cpu-state.ts";
import type { CounterAccess } from "../engine/guest-mode.ts";
import type { LocalApic } from "../local-apic.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { COUNTER_MASK, Counter } from "./counter.ts";
import { EventMeter } from "./event-meter.ts";

export interface CounterCpu extends RootCpu {
  readonly apic: LocalApic;
}

const RIP = state.rip;

export abstract class CounterUnit implements CounterAccess {
  protected readonly cpu: CounterCpu;
  protected readonly counters: readonly Counter[];
  /** The engine of the guest that runs; undefined in root mode. */
  protected engine: GuestEngine | undefined;
  /** Some counter is on. */
  isCounting = false;
  /** Some counter counts in guest mode only, or in root mode only. */
  protected tellsGuests = false;
  /** RIP before the slice of one instruction that may make a counter overflow. */
  protected lastRip = 0n;
  readonly #meter: EventMeter;
  readonly #privilegeChanges = (): void => this.#meter.sample(this.#running());

  protected constructor(cpu: CounterCpu, counters: number) {
    this.cpu = cpu;
    this.counters = Array.from({ length: counters }, () => new Counter());
    this.#meter = new EventMeter(cpu);
  }

  /** undefined: no MSR of the unit. */
  abstract readMsr(index: number): bigint | undefined;
  /** undefined: no MSR of the unit; false: #GP(0). */
  abstract writeMsr(index: number, value: bigint): boolean | undefined;
  /** By RDPMC's ECX; undefined: #GP(0). */
  abstract readCounter(selector: number): bigint | undefined;
  /** All that is written goes back to what it is after power-up. */
  protected abstract reset(): void;
  /** Sets `isOn` of each counter, and what it counts, from the registers. */
  protected abstract configure(): void;
  /** A counter has overflowed, perhaps within an instruction. */
  protected abstract overflowed(counter: number): void;
  /** Between two instructions, after overflows were noticed. */
  protected abstract settled(): void;
  /** The instruction that makes a counter overflow is to run by itself. */
  protected abstract readonly isPrecise: boolean;

  losePower(): void {
    for (const counter of this.counters) counter.value = 0;
    this.engine = undefined;
    this.#meter.turnTo(undefined);
    this.reset();
    this.#begin(0);
  }

  // Configuration

  /** Counts up to now, lets `change` write registers, and goes on with them. The instruction at hand, WRMSR, counts as before it. */
  protected reconfigure(change: () => void): void {
    const running = this.#running();
    this.#count(running);
    change();
    this.#begin(running);
    this.engine?.requestStop();
  }

  #begin(running: number): void {
    this.configure();
    this.isCounting = this.counters.some(({ isOn }) => isOn);
    this.#meter.clear();
    if (this.isCounting) this.#meter.restart(running);
    this.#watchPrivilege();
  }
  #watchPrivilege(): void {
    if (this.engine === undefined) return;
    this.engine.privilegeChanges = this.counters.some(({ tellsPrivilege }) => tellsPrivilege)
      ? this.#privilegeChanges
      : undefined;
  }
  #running(): number {
    return this.engine !== undefined && this.engine.operation !== 0 ? 1 : 0;
  }

  /** Value of a counter now, the instruction at hand left out. */
  protected valueOf(counter: number): bigint {
    this.#count(0);
    return BigInt((this.counters[counter] as Counter).value);
  }
  protected setValue(counter: number, value: bigint): void {
    this.reconfigure(() => {
      (this.counters[counter] as Counter).value = Number(value & COUNTER_MASK);
    });
  }

  #count(running: number): void {
    if (!this.isCounting) return;
    const meter = this.#meter;
    meter.sample(running);
    for (let i = 0; i < this.counters.length; i++) if ((this.counters[i] as Counter).add(meter)) this.overflowed(i);
    meter.clear();
  }

  /** Between two instructions: counts what has passed, and sees to overflows. */
  settle(): void {
    if (!this.isCounting) return;
    this.#count(0);
    this.settled();
  }

  // Guest mode

  enterGuest(engine: GuestEngine): void {
    this.settle();
    this.#turnTo(engine);
  }
  leaveGuest(): void {
    this.settle();
    if (this.engine !== undefined) this.engine.privilegeChanges = undefined;
    this.#turnTo(undefined);
  }
  #turnTo(engine: GuestEngine | undefined): void {
    this.engine = engine;
    this.#meter.turnTo(engine);
    if (this.tellsGuests) {
      this.configure();
      this.isCounting = this.counters.some(({ isOn }) => isOn);
    }
    if (!this.isCounting) return;
    this.#meter.restart(0);
    this.#watchPrivilege();
  }
  /** At most `slice` instructions, so that no counter overflows before their end. */
  sliceUpTo(slice: number): number {
    let left = slice;
    const { clock } = this.cpu;
    for (const counter of this.counters) {
      left = Math.min(left, counter.instructionsLeft);
      const { cyclesLeft } = counter;
      if (!clock.isWall && cyclesLeft !== Number.POSITIVE_INFINITY) left = Math.min(left, clock.instructionsFor(cyclesLeft));
    }
    if (this.isPrecise && left === 1) this.lastRip = (this.engine as GuestEngine).get64(RIP);
    return this.isPrecise && left > 1 && left < slice ? left - 1 : left;
  }
  /** TSC at which a counter of cycles overflows under the wall clock, if the CPU does not halt before. */
  deadline(now: number): number {
    if (!this.cpu.clock.isWall) return Number.POSITIVE_INFINITY;
    return now + this.counters.reduce((least, { cyclesLeft }) => Math.min(least, cyclesLeft), Number.POSITIVE_INFINITY);
  }

  /** Time that passes from now until `awake` is no time that the CPU runs. */
  halt(): void {
    this.settle();
  }
  awake(): void {
    if (this.isCounting) this.#meter.restart(0);
  }
}
