import type { PortDevice } from "./port-bus.ts";

export const KEYBOARD_DATA_PORT = 0x60;
export const KEYBOARD_COMMAND_PORT = 0x64;

const PULSE_RESET = 0xfe;
const NOBODY = 0xff;

/**
 * An 8042 without keyboard: its output buffer is always empty, and it can pulse the CPU's reset line. Where it is hidden it does only that,
 * and reads as if nobody were there: firmware that finds a controller waits seconds for its keyboard.
 */
export class KeyboardController implements PortDevice {
  readonly #reset: () => void;
  isHidden = false;

  constructor(reset: () => void) {
    this.#reset = reset;
  }

  read(): number {
    return this.isHidden ? NOBODY : 0;
  }

  write(port: number, _size: number, value: number): void {
    if (port === KEYBOARD_COMMAND_PORT && value === PULSE_RESET) this.#reset();
  }
}
