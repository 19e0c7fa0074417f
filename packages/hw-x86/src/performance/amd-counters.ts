/**
 * The six core performance counters of AMD's processors, four of which are at the addresses of old as well. Source: AMD64 APM Vol. 2,
 * Performance Monitoring Counters; Core Performance Event-Select Registers.
 */
import { Efer } from "../engine/system/bits.ts";
import { Root } from "../root-msrs.ts";
import type { CountedEvent, Counter } from "./counter.ts";
import { type CounterCpu, CounterUnit } from "./counter-unit.ts";
import { EventSelect, selectionOf } from "./event-select.ts";

const COUNTERS = 6;
const LEGACY_COUNTERS = 4;
const Msr = { PERF_LEGACY_CTL0: 0xc001_0000, PERF_LEGACY_CTR0: 0xc001_0004, PERF_CTL0: 0xc001_0200 } as const;

/** PERF_CTL: events above FFh, and guest mode or root mode only, are in the upper half. */
const SELECT_WRITABLE = 0x0000_030f_ffd7_ffffn;
const GUEST_ONLY = 1n << 40n;
const HOST_ONLY = 1n << 41n;

const CYCLES_NOT_IN_HALT = 0x076;
const RETIRED_INSTRUCTIONS = 0x0c0;

function eventOf(select: bigint): CountedEvent | undefined {
  switch (Number((select & 0xffn) | ((select >> 24n) & 0xf00n))) {
    case CYCLES_NOT_IN_HALT:
      return "cycles";
    case RETIRED_INSTRUCTIONS:
      return "instructions";
    default:
      return undefined;
  }
}

/** The counter that an MSR belongs to, and whether it is the event select. */
function registerOf(index: number): { counter: number; isSelect: boolean } | undefined {
  if (index >= Msr.PERF_CTL0 && index < Msr.PERF_CTL0 + 2 * COUNTERS)
    return { counter: (index - Msr.PERF_CTL0) >>> 1, isSelect: (index & 1) === 0 };
  if (index >= Msr.PERF_LEGACY_CTL0 && index < Msr.PERF_LEGACY_CTR0 + LEGACY_COUNTERS)
    return { counter: (index - Msr.PERF_LEGACY_CTL0) % LEGACY_COUNTERS, isSelect: index < Msr.PERF_LEGACY_CTR0 };
  return undefined;
}

export class AmdCounters extends CounterUnit {
  readonly #selects = new BigUint64Array(COUNTERS);
  #isInterruptDue = false;

  constructor(cpu: CounterCpu) {
    super(cpu, COUNTERS);
  }

  protected reset(): void {
    this.#selects.fill(0n);
    this.#isInterruptDue = false;
  }

  protected configure(): void {
    this.tellsGuests = false;
    for (let i = 0; i < COUNTERS; i++) {
      const select = this.#selects[i] as bigint;
      if ((select & (GUEST_ONLY | HOST_ONLY)) !== 0n) this.tellsGuests = true;
      const low = Number(select & 0xffff_ffffn);
      const counter = this.counters[i] as Counter;
      counter.isOn = (low & EventSelect.enable) !== 0 && this.#countsHere(select);
      counter.select(selectionOf(low, eventOf(select)));
    }
  }
  /** Without SVM the two bits mean nothing, and both together mean both. */
  #countsHere(select: bigint): boolean {
    const only = select & (GUEST_ONLY | HOST_ONLY);
    const isSvmOn = ((this.cpu.msrs.halves[2 * Root.efer] as number) & Efer.SVME) !== 0;
    if (!isSvmOn || only === 0n || only === (GUEST_ONLY | HOST_ONLY)) return true;
    return (only === GUEST_ONLY) === (this.engine !== undefined);
  }
  /** EFER.SVME may have changed, without which guest mode and root mode are not told apart. */
  extensionSwitched(): void {
    if (this.tellsGuests) this.reconfigure(() => {});
  }
  protected get isPrecise(): boolean {
    return false;
  }

  protected overflowed(counter: number): void {
    if ((Number((this.#selects[counter] as bigint) & 0xffff_ffffn) & EventSelect.interrupt) !== 0) this.#isInterruptDue = true;
  }
  protected settled(): void {
    if (!this.#isInterruptDue) return;
    this.#isInterruptDue = false;
    this.cpu.apic.performanceInterrupt(false);
  }

  readMsr(index: number): bigint | undefined {
    const register = registerOf(index);
    if (register === undefined) return undefined;
    return register.isSelect ? this.#selects[register.counter] : this.valueOf(register.counter);
  }

  writeMsr(index: number, value: bigint): boolean | undefined {
    const register = registerOf(index);
    if (register === undefined) return undefined;
    if (!register.isSelect) {
      this.setValue(register.counter, value);
      return true;
    }
    if ((value & ~SELECT_WRITABLE) !== 0n) return false;
    this.reconfigure(() => {
      this.#selects[register.counter] = value;
    });
    return true;
  }

  readCounter(selector: number): bigint | undefined {
    return selector < COUNTERS ? this.valueOf(selector) : undefined;
  }
}
