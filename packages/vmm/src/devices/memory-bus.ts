/** A device in guest-physical memory. Accesses come byte by byte, by offset in the device. */
export interface MemoryDevice {
  /** Guest physical address. */
  readonly start: number;
  readonly bytes: number;
  read(offset: number): number;
  write(offset: number, value: number): void;
}

/** What is memory-mapped and no memory of the guest's. Where nobody is, reads float high and writes go nowhere. */
export class MemoryBus {
  readonly #devices: MemoryDevice[] = [];

  attach(device: MemoryDevice): void {
    this.#devices.push(device);
  }

  /** Fills `into` from `address` on. */
  read(address: number, into: Uint8Array): void {
    const device = this.#at(address);
    for (let i = 0; i < into.length; i++) into[i] = device?.read(address - device.start + i) ?? 0xff;
  }
  write(address: number, from: Uint8Array): void {
    const device = this.#at(address);
    for (let i = 0; i < from.length; i++) device?.write(address - device.start + i, from[i] as number);
  }

  #at(address: number): MemoryDevice | undefined {
    return this.#devices.find(({ start, bytes }) => address >= start && address < start + bytes);
  }
}
