import type { PortDevice } from "./port-bus.ts";

/** Where SeaBIOS and OVMF write what they do, and what they read there to see that somebody listens (QEMU's debug console). */
export const FIRMWARE_LOG_PORT = 0x402;
const LISTENING = 0xe9;

export class FirmwareLog implements PortDevice {
  readonly #put: (byte: number) => void;

  constructor(put: (byte: number) => void) {
    this.#put = put;
  }

  read(): number {
    return LISTENING;
  }

  write(_port: number, _size: number, value: number): void {
    this.#put(value & 0xff);
  }
}
