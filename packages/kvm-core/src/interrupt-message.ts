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

/**
 * Delivers to every APIC that the message names; a lowest-priority one to the one with the lowest processor priority. Returns how
 * many took it as new: 0 when all had it pending already, -1 when there is nobody to take it. `source`: the APIC whose ICR sent it.
 */
export function deliverInterrupt(lapics: Iterable<Lapic>, message: InterruptMessage, source?: Lapic): number {
  if (message.deliveryMode === DeliveryMode.init && message.levelTriggered && !message.asserted) return 0; // INIT de-assert is for old APICs
  const isVector = message.deliveryMode === DeliveryMode.fixed || message.deliveryMode === DeliveryMode.lowestPriority;
  let taken = 0;
  let named = false;
  let lowest: Lapic | undefined;
  for (const lapic of lapics) {
    if (!lapic.matches(message, source) || (isVector && !(lapic.enabled && lapic.softwareEnabled))) continue;
    named = true;
    if (message.deliveryMode === DeliveryMode.lowestPriority) {
      if (!lowest || lapic.processorPriority < lowest.processorPriority) lowest = lapic;
    } else if (lapic.accept(message)) taken++;
  }
  if (lowest?.accept(message)) taken++;
  return named ? taken : -1;
}
