/** Message-signalled interrupts. Source: Intel SDM Vol. 3A, Message Signalled Interrupts. */
import { DeliveryMode, type InterruptMessage, Shorthand } from "./interrupt-message.ts";

/** `addressHigh` holds bits 31:8 of the destination for x2APIC ids beyond 255. */
export function decodeMsi(addressLow: number, addressHigh: number, data: number): InterruptMessage {
  const redirectionHint = (addressLow & 8) !== 0;
  const mode = (data >> 8) & 7;
  return {
    vector: data & 0xff,
    // The hint lets the chipset choose: the one with the lowest priority
    deliveryMode: redirectionHint && mode === DeliveryMode.fixed ? DeliveryMode.lowestPriority : mode,
    destination: (((addressLow >> 12) & 0xff) | (addressHigh & 0xffff_ff00)) >>> 0,
    logical: (addressLow & 4) !== 0,
    levelTriggered: (data & 0x8000) !== 0,
    asserted: true,
    shorthand: Shorthand.none,
  };
}
