import type { PortDevice } from "./port-bus.ts";

export const KEYBOARD_DATA_PORT = 0x60;
export const KEYBOARD_COMMAND_PORT = 0x64;

const PULSE_RESET = 0xfe;

/** An 8042 without keyboard: its output buffer is always empty, and it can pulse the CPU's reset line. */
export class KeyboardController implements PortDevice {
  readonly #reset: () => void;

  constructor(reset: () => void) {
    this.#reset = reset;
  }

  read(): number {
    return 0;
  }

  write(port: number, _size: number, value: number): void {
    if (port === KEYBOARD_COMMAND_PORT && value === PULSE_RESET) this.#reset();
  }
}
