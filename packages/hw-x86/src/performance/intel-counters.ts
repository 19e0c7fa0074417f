/**
 * Architectural performance monitoring, version 2: four general counters and three fixed ones. Source: Intel SDM Vol. 3B, Performance
 * Monitoring; Vol. 4, Architectural MSRs.
 */
import { state } from "../engine/cpu-state.ts";
import { isLinearAddress } from "../engine/system/linear-address.ts";
import { Root } from "../root-msrs.ts";
import { COUNTER_BITS, COUNTER_MASK, type CountedEvent, type Counter } from "./counter.ts";
import { type CounterCpu, CounterUnit } from "./counter-unit.ts";
import { PEBS_FORMAT, writePebsRecord } from "./debug-store.ts";
import { EventSelect, selectionOf } from "./event-select.ts";
import { FIXED_COUNTERS as FIXED, GENERAL_COUNTERS as GENERAL } from "./performance-leaf.ts";

const ALL_GENERAL = (1 << GENERAL) - 1;

const Msr = {
  PMC0: 0xc1,
  PERFEVTSEL0: 0x186,
  FIXED_CTR0: 0x309,
  PERF_CAPABILITIES: 0x345,
  FIXED_CTR_CTRL: 0x38d,
  PERF_GLOBAL_STATUS: 0x38e,
  PERF_GLOBAL_CTRL: 0x38f,
  PERF_GLOBAL_OVF_CTRL: 0x390,
  PEBS_ENABLE: 0x3f1,
  A_PMC0: 0x4c1,
  DS_AREA: 0x600,
} as const;

/** IA32_PERFEVTSELx: all but the bit for any thread of a core, which came with version 3. */
const SELECT_WRITABLE = 0xffdf_ffffn;
/** IA32_FIXED_CTR_CTRL: four bits for each counter. */
const FixedControl = { supervisor: 1, user: 2, interrupt: 8 } as const;
const FIXED_CONTROL_WRITABLE = 0xbbbn;
const FIXED_EVENTS: readonly CountedEvent[] = ["instructions", "cycles", "cycles"];
/** IA32_PERF_GLOBAL_STATUS: the PEBS buffer has come to its threshold. */
const DS_BUFFER_OVERFLOW = 1n << 62n;
/** IA32_DEBUGCTL.FREEZE_PERFMON_ON_PMI. */
const FREEZE_ON_INTERRUPT = 1 << 12;
/** PEBS records are traps, hold all registers, and are of that format; IA32_A_PMCx are there. */
const CAPABILITIES = (1n << 6n) | (1n << 7n) | (BigInt(PEBS_FORMAT) << 8n) | (1n << 13n);

/** Event and unit mask: the core runs at the rate of the TSC, so that both kinds of cycles are the same. */
const EVENTS = new Map<number, CountedEvent>([
  [0x003c, "cycles"],
  [0x013c, "cycles"],
  [0x00c0, "instructions"],
]);

/** Counters as bits, the fixed ones behind the general ones, from where the global MSRs have them. */
function toMask(value: bigint): number {
  return Number(value & BigInt(ALL_GENERAL)) | (Number((value >> 32n) & ((1n << BigInt(FIXED)) - 1n)) << GENERAL);
}
function fromMask(mask: number): bigint {
  return BigInt(mask & ALL_GENERAL) | (BigInt(mask >>> GENERAL) << 32n);
}
const GLOBAL_WRITABLE = fromMask((1 << (GENERAL + FIXED)) - 1);

/** Reserved bits of IA32_PERF_GLOBAL_CTRL are clear. */
export function isGlobalControl(low: number, high: number): boolean {
  return (low & ~ALL_GENERAL) === 0 && (high & ~((1 << FIXED) - 1)) === 0;
}

export class IntelCounters extends CounterUnit {
  readonly #selects = new Uint32Array(GENERAL);
  #fixedControl = 0;
  /** Counters as bits. */
  #global = ALL_GENERAL;
  #status = 0;
  #isBufferOverflow = false;
  #pebsEnabled = 0;
  #dsArea = 0n;
  /** Counters whose record is due when the instruction at hand has ended. */
  #recordsDue = 0;
  #isInterruptDue = false;

  constructor(cpu: CounterCpu) {
    super(cpu, GENERAL + FIXED);
  }

  protected reset(): void {
    this.#selects.fill(0);
    this.#fixedControl = 0;
    this.#global = ALL_GENERAL;
    this.#status = 0;
    this.#isBufferOverflow = false;
    this.#pebsEnabled = 0;
    this.#dsArea = 0n;
    this.#recordsDue = 0;
    this.#isInterruptDue = false;
  }

  protected configure(): void {
    for (let i = 0; i < GENERAL; i++) {
      const select = this.#selects[i] as number;
      const counter = this.counters[i] as Counter;
      counter.isOn = ((this.#global >>> i) & 1) !== 0 && (select & EventSelect.enable) !== 0;
      counter.select(selectionOf(select, EVENTS.get(select & 0xffff)));
    }
    for (let i = 0; i < FIXED; i++) {
      const control = this.#fixedControl >>> (4 * i);
      const counter = this.counters[GENERAL + i] as Counter;
      const supervisor = (control & FixedControl.supervisor) !== 0;
      const user = (control & FixedControl.user) !== 0;
      counter.isOn = ((this.#global >>> (GENERAL + i)) & 1) !== 0 && (supervisor || user);
      counter.select({ event: FIXED_EVENTS[i], supervisor, user, threshold: 0, isInverted: false, isEdge: false });
    }
  }

  /** The event of instructions retired is the one with precise state. */
  #recordsOverflowOf(counter: number): boolean {
    return (
      ((this.#pebsEnabled >>> counter) & 1) !== 0 && EVENTS.get((this.#selects[counter] as number) & 0xffff) === "instructions"
    );
  }
  protected get isPrecise(): boolean {
    return this.#pebsEnabled !== 0;
  }

  protected overflowed(counter: number): void {
    if (counter < GENERAL && this.#recordsOverflowOf(counter)) {
      this.#recordsDue |= 1 << counter;
      return;
    }
    this.#status |= 1 << counter;
    const interrupts =
      counter < GENERAL
        ? ((this.#selects[counter] as number) & EventSelect.interrupt) !== 0
        : ((this.#fixedControl >>> (4 * (counter - GENERAL))) & FixedControl.interrupt) !== 0;
    if (interrupts) this.#isInterruptDue = true;
  }

  protected settled(): void {
    for (let i = 0; this.#recordsDue !== 0 && i < GENERAL; i++) if (((this.#recordsDue >>> i) & 1) !== 0) this.#record(i);
    this.#recordsDue = 0;
    if (!this.#isInterruptDue) return;
    this.#isInterruptDue = false;
    if ((this.#debugControl() & FREEZE_ON_INTERRUPT) !== 0)
      this.reconfigure(() => {
        this.#global = 0;
      });
    this.cpu.apic.performanceInterrupt(true);
  }
  #debugControl(): number {
    return this.engine !== undefined
      ? (this.engine.u32[state.debugctl >>> 2] as number)
      : (this.cpu.msrs.halves[2 * Root.debugctl] as number);
  }

  #record(counter: number): void {
    const { engine } = this;
    if (engine === undefined) {
      this.cpu.log("PEBS: no record in root mode, whose software has neither registers nor memory of this machine's");
      return;
    }
    const outcome = writePebsRecord(engine, this.#dsArea, {
      counter,
      status: this.#statusValue() | (1n << BigInt(counter)),
      eventingIp: this.lastRip,
      tsc: BigInt(this.cpu.rdtsc()),
    });
    if (outcome === undefined) {
      this.cpu.log(`PEBS: no record, since the guest does not map the DS area at ${this.#dsArea.toString(16)} or its buffer`);
      return;
    }
    if (!outcome.isFull) this.setValue(counter, outcome.resetValue);
    if (!outcome.hasReachedThreshold || this.#isBufferOverflow) return;
    this.#isBufferOverflow = true;
    this.#isInterruptDue = true;
  }

  // Registers

  #statusValue(): bigint {
    return fromMask(this.#status) | (this.#isBufferOverflow ? DS_BUFFER_OVERFLOW : 0n);
  }

  readMsr(index: number): bigint | undefined {
    const general = indexIn(index, Msr.PMC0, GENERAL) ?? indexIn(index, Msr.A_PMC0, GENERAL);
    if (general !== undefined) return this.valueOf(general);
    const fixed = indexIn(index, Msr.FIXED_CTR0, FIXED);
    if (fixed !== undefined) return this.valueOf(GENERAL + fixed);
    const select = indexIn(index, Msr.PERFEVTSEL0, GENERAL);
    if (select !== undefined) return BigInt(this.#selects[select] as number);
    switch (index) {
      case Msr.PERF_CAPABILITIES:
        return CAPABILITIES;
      case Msr.FIXED_CTR_CTRL:
        return BigInt(this.#fixedControl);
      case Msr.PERF_GLOBAL_STATUS:
        this.valueOf(0);
        return this.#statusValue();
      case Msr.PERF_GLOBAL_CTRL:
        return this.globalControl;
      case Msr.PERF_GLOBAL_OVF_CTRL:
        return 0n;
      case Msr.PEBS_ENABLE:
        return BigInt(this.#pebsEnabled);
      case Msr.DS_AREA:
        return this.#dsArea;
      default:
        return undefined;
    }
  }

  writeMsr(index: number, value: bigint): boolean | undefined {
    const legacy = indexIn(index, Msr.PMC0, GENERAL);
    if (legacy !== undefined) {
      // The lower half counts, with its sign
      this.setValue(legacy, BigInt.asUintN(COUNTER_BITS, BigInt.asIntN(32, value)));
      return true;
    }
    const general = indexIn(index, Msr.A_PMC0, GENERAL);
    const fixed = indexIn(index, Msr.FIXED_CTR0, FIXED);
    const whole = general ?? (fixed === undefined ? undefined : GENERAL + fixed);
    if (whole !== undefined) {
      if ((value & ~COUNTER_MASK) !== 0n) return false;
      this.setValue(whole, value);
      return true;
    }
    const select = indexIn(index, Msr.PERFEVTSEL0, GENERAL);
    if (select !== undefined)
      return this.#set(value, SELECT_WRITABLE, () => {
        this.#selects[select] = Number(value);
      });
    switch (index) {
      case Msr.FIXED_CTR_CTRL:
        return this.#set(value, FIXED_CONTROL_WRITABLE, () => {
          this.#fixedControl = Number(value);
        });
      case Msr.PERF_GLOBAL_CTRL:
        return this.#set(value, GLOBAL_WRITABLE, () => {
          this.#global = toMask(value);
        });
      case Msr.PERF_GLOBAL_OVF_CTRL:
        // Bit 63 is for conditions that this machine has none of
        return this.#set(value, GLOBAL_WRITABLE | DS_BUFFER_OVERFLOW | (1n << 63n), () => {
          this.#status &= ~toMask(value);
          if ((value & DS_BUFFER_OVERFLOW) !== 0n) this.#isBufferOverflow = false;
        });
      case Msr.PEBS_ENABLE:
        return this.#set(value, BigInt(ALL_GENERAL), () => {
          this.#pebsEnabled = Number(value);
        });
      case Msr.DS_AREA:
        if (!isLinearAddress(this.cpu.model, value)) return false;
        this.#dsArea = value;
        return true;
      case Msr.PERF_CAPABILITIES:
      case Msr.PERF_GLOBAL_STATUS:
        return false;
      default:
        return undefined;
    }
  }
  #set(value: bigint, writable: bigint, change: () => void): boolean {
    if ((value & ~writable) !== 0n) return false;
    this.reconfigure(change);
    return true;
  }

  get globalControl(): bigint {
    return fromMask(this.#global);
  }
  /** As VM entry and exit load it: the reserved bits were checked. */
  set globalControl(value: bigint) {
    this.reconfigure(() => {
      this.#global = toMask(value);
    });
  }

  /** Bit 30 of the selector: a fixed counter. */
  readCounter(selector: number): bigint | undefined {
    const isFixed = (selector & 0x4000_0000) !== 0;
    const counter = (selector & ~0x4000_0000) >>> 0;
    if (counter >= (isFixed ? FIXED : GENERAL)) return undefined;
    return this.valueOf(isFixed ? GENERAL + counter : counter);
  }
}

function indexIn(msr: number, first: number, count: number): number | undefined {
  return msr >= first && msr < first + count ? msr - first : undefined;
}
