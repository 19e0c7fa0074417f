/**
 * The local APIC of a logical CPU as software in root mode reaches it: registers by their offsets in the page that IA32_APIC_BASE names.
 * Interrupts of the machine wait in `InterruptLines`, from which they are acknowledged at once, so that there is no in-service
 * register and no EOI; the timer is `setTimerDeadline`. Source: Intel SDM Vol. 3A, Advanced Programmable Interrupt Controller; AMD64
 * APM Vol. 2, Local APIC.
 */
import type { InterruptLines } from "./interrupt-lines.ts";

/** Offsets of the registers that there are. */
export const LocalApicRegister = {
  id: 0x20,
  version: 0x30,
  icrLow: 0x300,
  icrHigh: 0x310,
  lvtPerformance: 0x340,
} as const;

/** Version 14h with 5 entries in the local vector table. */
const VERSION = 0x0004_0014;
const MASKED = 1 << 16;
/** Vector, delivery mode, mask. */
const LVT_WRITABLE = 0x1_07ff;
const LOGICAL_DESTINATION = 1 << 11;
/** Destination mode in a message's address. */
const MESSAGE_LOGICAL = 1 << 2;
const ALL = 0xff;
const LOWEST_VECTOR = 16;
/** Delivery modes. */
const FIXED = 0;
const NMI = 4;
/** Destination shorthands of the ICR. */
const Shorthand = { none: 0, self: 1, all: 2, others: 3 } as const;

export class LocalApic {
  readonly #lines: InterruptLines;
  readonly #id: number;
  readonly #log: (line: string) => void;
  #lvtPerformance = MASKED;
  #icrLow = 0;
  #icrHigh = 0;

  constructor(lines: InterruptLines, id: number, log: (line: string) => void) {
    this.#lines = lines;
    this.#id = id;
    this.#log = log;
  }

  losePower(): void {
    this.#lvtPerformance = MASKED;
    this.#icrLow = 0;
    this.#icrHigh = 0;
  }

  read(offset: number): number {
    switch (offset) {
      case LocalApicRegister.id:
        return (this.#id << 24) >>> 0;
      case LocalApicRegister.version:
        return VERSION;
      case LocalApicRegister.icrLow:
        return this.#icrLow;
      case LocalApicRegister.icrHigh:
        return this.#icrHigh;
      case LocalApicRegister.lvtPerformance:
        return this.#lvtPerformance;
      default:
        this.#log(`local APIC: read of register 0x${offset.toString(16)}, which this machine's has not`);
        return 0;
    }
  }

  write(offset: number, value: number): void {
    switch (offset) {
      case LocalApicRegister.icrLow:
        this.#icrLow = (value & 0xc_cfff) >>> 0;
        this.#send();
        return;
      case LocalApicRegister.icrHigh:
        this.#icrHigh = (value & 0xff00_0000) >>> 0;
        return;
      case LocalApicRegister.lvtPerformance:
        this.#lvtPerformance = value & LVT_WRITABLE;
        return;
      default:
        this.#log(`local APIC: write of register 0x${offset.toString(16)}, which this machine's has not`);
    }
  }

  /** A message-signalled interrupt. Source: Intel SDM Vol. 3A, Message Signalled Interrupts. */
  message(address: number, data: number): void {
    if ((address & MESSAGE_LOGICAL) !== 0) {
      this.#log("local APIC: message to a logical destination, which this machine's has not");
      return;
    }
    const target = (address >>> 12) & 0xff;
    for (let cpu = 0; cpu < this.#lines.count; cpu++) if (target === cpu || target === ALL) this.#deliver(cpu, data, "message");
  }

  /** A performance counter has overflowed. `masksItself`: the entry is masked by that, until software clears its mask. */
  performanceInterrupt(masksItself: boolean): void {
    const entry = this.#lvtPerformance;
    if ((entry & MASKED) !== 0) return;
    this.#deliver(this.#id, entry, "LVT performance counter entry");
    if (masksItself) this.#lvtPerformance |= MASKED;
  }

  #send(): void {
    const command = this.#icrLow;
    const { count } = this.#lines;
    const shorthand = (command >>> 18) & 3;
    if (shorthand === Shorthand.none && (command & LOGICAL_DESTINATION) !== 0) {
      this.#log("local APIC: IPI to a logical destination, which this machine's has not");
      return;
    }
    const target = this.#icrHigh >>> 24;
    for (let cpu = 0; cpu < count; cpu++) {
      const isSelf = cpu === this.#id;
      let isMeant = shorthand === Shorthand.all || target === cpu || target === ALL;
      if (shorthand === Shorthand.self) isMeant = isSelf;
      else if (shorthand === Shorthand.others) isMeant = !isSelf;
      if (isMeant) this.#deliver(cpu, command, "IPI");
    }
  }

  /** `entry`: vector and delivery mode as the local vector table and the ICR have them. */
  #deliver(cpu: number, entry: number, what: string): void {
    const mode = (entry >>> 8) & 7;
    const vector = entry & 0xff;
    if (mode === NMI) this.#lines.raiseNmi(cpu);
    else if (mode !== FIXED) this.#log(`local APIC: ${what} with delivery mode ${mode}: fixed and NMI are there`);
    else if (vector < LOWEST_VECTOR) this.#log(`local APIC: ${what} with vector ${vector}: a vector is 16 to 255`);
    else this.#lines.raise(cpu, vector);
  }
}
