/** What travels on the bus between local APICs, the IOAPIC and devices that send MSIs. */
import type { Lapic } from "./lapic.ts";

export const DeliveryMode = { fixed: 0, lowestPriority: 1, smi: 2, nmi: 4, init: 5, startUp: 6, extInt: 7 } as const;
export const Shorthand = { none: 0, self: 1, allIncludingSelf: 2, allExcludingSelf: 3 } as const;

export interface InterruptMessage {
  readonly vector: number;
  /** DeliveryMode */
  readonly deliveryMode: number;
  /** APIC id (physical) or logical destination, 8 bits in xAPIC mode, 32 in x2APIC mode. */
  readonly destination: number;
  readonly logical: boolean;
  readonly levelTriggered: boolean;
  /** Level bit: false only for INIT de-assert. */
  readonly asserted: boolean;
  readonly shorthand: number;
}

/** Delivers to every APIC that the message names. Returns how many took it: 0 when all had it pending already, -1 when it names
 *  none. `source` sends by a shorthand; in `lapics`, ascending by id. */
export type DeliverInterrupt = (lapics: Iterable<Lapic>, message: InterruptMessage, source?: Lapic) => number;
