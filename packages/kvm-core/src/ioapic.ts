import type { KvmIoapicState, StructValue } from "@mkvm/kvm-abi";
import type { InterruptMessage } from "./interrupt-message.ts";

export interface IoapicHost {
  /** To the local APICs; as DeliverInterrupt. */
  deliver(message: InterruptMessage): number;
  /** The guest ended the interrupt of this pin. */
  acknowledged(pin: number): void;
}

/** 82093AA with 24 pins at 0xfec00000. */
export interface Ioapic {
  readonly baseAddress: number;
  /** Sets pin 0 to 23 for one source (IrqSource bit). As Pic.setLine. */
  setLine(pin: number, source: number, level: boolean): number;
  /** Offset in the register page, `length` 1, 2, 4, 8. */
  mmioRead(offset: number, length: number): Uint8Array;
  mmioWrite(offset: number, data: Uint8Array): void;
  /** EOI broadcast by a local APIC. */
  endOfInterrupt(vector: number): void;
  /** True when a pin delivers this vector: the vectors whose EOI matters. */
  handlesVector(vector: number): boolean;
  getState(): StructValue<(typeof KvmIoapicState)["fields"]>;
  setState(state: StructValue<(typeof KvmIoapicState)["fields"]>): void;
  /** Pins whose pending edge was delivered, for the section. */
  irrDelivered: number;
  /** Which sources drive each pin, 24 numbers. */
  readonly lines: Uint32Array;
  reset(): void;
}

export type CreateIoapic = (host: IoapicHost) => Ioapic;
