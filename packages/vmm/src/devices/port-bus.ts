/** A device on the I/O port bus. Sizes are 1, 2 or 4 bytes. */
export interface PortDevice {
  read(port: number, size: number): number;
  write(port: number, size: number, value: number): void;
}

/** The I/O port space: which device answers which ports. Ports that nobody claims float: they read as all ones. */
export class PortBus {
  readonly #devices = new Map<number, PortDevice>();

  /** Throws when a port is already taken. */
  attach(device: PortDevice, firstPort: number, count: number): void {
    for (let port = firstPort; port < firstPort + count; port++) {
      if (this.#devices.has(port)) throw new Error(`I/O port 0x${port.toString(16)} has two devices`);
      this.#devices.set(port, device);
    }
  }

  read(port: number, size: number): number {
    const device = this.#devices.get(port);
    return device ? device.read(port, size) : size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
  }

  write(port: number, size: number, value: number): void {
    this.#devices.get(port)?.write(port, size, value);
  }
}
