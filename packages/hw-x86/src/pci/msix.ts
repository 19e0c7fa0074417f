/**
 * MSI-X of a function: a table of messages and an array of pending bits in one of its BARs, and the capability that controls them. Source:
 * PCI Local Bus Specification 3.0, MSI-X Capability and Table Structures.
 */
import type { ConfigurationSpace } from "./configuration-space.ts";

const CAPABILITY_ID = 0x11;
export const MSIX_CAPABILITY_BYTES = 12;
/** Message control. */
const Control = { enable: 1 << 15, functionMask: 1 << 14 } as const;
const ENTRY_BYTES = 16;
const MASKED = 1;
/** Offset of the pending bits in the BAR. */
export const PENDING_BITS = 0x800;
export const MSIX_BAR_BYTES = 0x1000;

/** A message as the table has it. */
export interface Message {
  readonly address: number;
  readonly data: number;
}

export class Msix {
  readonly #configuration: ConfigurationSpace;
  readonly #capability: number;
  readonly #entries: number;
  readonly #words: Uint32Array;
  readonly #send: (message: Message) => void;

  /** `words`: the BAR's contents, where the machine keeps them; `send` writes a message to the bus. */
  constructor(
    configuration: ConfigurationSpace,
    capability: number,
    entries: number,
    words: Uint32Array,
    send: (message: Message) => void,
  ) {
    this.#configuration = configuration;
    this.#capability = capability;
    this.#entries = entries;
    this.#words = words;
    this.#send = send;
  }

  /** `bar` holds table and pending bits. */
  powerOn(bar: number): void {
    this.#words.fill(0);
    for (let i = 0; i < this.#entries; i++) this.#words[i * 4 + 3] = MASKED;
    const at = this.#capability;
    this.#configuration.set16(at, CAPABILITY_ID);
    this.#configuration.set16(at + 2, this.#entries - 1);
    this.#configuration.set32(at + 4, bar);
    this.#configuration.set32(at + 8, PENDING_BITS | bar);
  }
  /** What software may write of the capability. */
  allow(): void {
    this.#configuration.allow(this.#capability + 2, 2, Control.enable | Control.functionMask);
  }

  /** The function has something to tell. False: there is no such entry, or MSI-X is off. */
  raise(entry: number): boolean {
    if (entry >= this.#entries || (this.#control() & Control.enable) === 0) return false;
    if (this.#isMasked(entry)) Atomics.or(this.#words, PENDING_BITS >>> 2, 1 << entry);
    else this.#emit(entry);
    return true;
  }
  /** Masks may have been lifted: what waited for that goes out. */
  settle(): void {
    if ((this.#control() & Control.enable) === 0) return;
    for (let entry = 0; entry < this.#entries; entry++) {
      if (this.#isMasked(entry)) continue;
      const bit = 1 << entry;
      if ((Atomics.and(this.#words, PENDING_BITS >>> 2, ~bit) & bit) !== 0) this.#emit(entry);
    }
  }

  #control(): number {
    return this.#configuration.get16(this.#capability + 2);
  }
  #isMasked(entry: number): boolean {
    return (this.#control() & Control.functionMask) !== 0 || ((this.#words[entry * 4 + 3] as number) & MASKED) !== 0;
  }
  #emit(entry: number): void {
    const at = entry * 4;
    const low = this.#words[at] as number;
    this.#send({ address: (this.#words[at + 1] as number) * 0x1_0000_0000 + low, data: this.#words[at + 2] as number });
  }

  read(offset: number): number {
    return this.#words[offset >>> 2] ?? 0;
  }
  /** A doubleword of the table; the pending bits are read-only. */
  write(offset: number, value: number): void {
    if (offset >= this.#entries * ENTRY_BYTES) return;
    const isControl = offset % ENTRY_BYTES === 12;
    this.#words[offset >>> 2] = isControl ? value & MASKED : value;
    this.settle();
  }
}
