import type { PortDevice } from "./port-bus.ts";

/** ACPI power management registers: PM1a event block, then PM1a control. The tables in boot/acpi-tables.ts point here. */
export const PM1_EVENT_PORT = 0x600;
export const PM1_CONTROL_PORT = 0x604;
/** SLP_TYP of soft-off, as the \_S5 object of the DSDT says. */
export const SLEEP_TYPE_S5 = 5;

const SLEEP_ENABLE = 1 << 13;
const SCI_ENABLE = 1;

/** Fixed-hardware ACPI, as far as soft-off needs it. Source: ACPI specification, PM1 Control Registers. */
export class AcpiPower implements PortDevice {
  readonly #powerOff: () => void;
  #enable = 0;

  constructor(powerOff: () => void) {
    this.#powerOff = powerOff;
  }

  read(port: number): number {
    if (port === PM1_CONTROL_PORT) return SCI_ENABLE;
    return port === PM1_EVENT_PORT + 2 ? this.#enable : 0;
  }

  write(port: number, size: number, value: number): void {
    if (port === PM1_EVENT_PORT + 2) this.#enable = value & 0xffff;
    if (port === PM1_CONTROL_PORT && size >= 2 && value & SLEEP_ENABLE && ((value >> 10) & 7) === SLEEP_TYPE_S5)
      this.#powerOff();
  }
}
