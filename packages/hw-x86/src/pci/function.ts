import type { ConfigurationSpace } from "./configuration-space.ts";

/** A function on the bus of the root. Accesses to its memory are of aligned doublewords. */
export interface PciFunction {
  readonly configuration: ConfigurationSpace;
  /** Power-up, with firmware's work done: BARs lie one behind the other from `window` on. */
  powerOn(window: number): void;
  configurationWritten(): void;
  /** One of its BARs is at this address, and answers. */
  claims(address: number): boolean;
  read(address: number): number;
  write(address: number, value: number): void;
}
