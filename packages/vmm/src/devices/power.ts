import { type Section, section, struct, u32 } from "@mkvm/kvm-abi";
import type { PortDevice } from "./port-bus.ts";

/** ACPI power management registers: PM1a event block, then PM1a control. The tables in boot/acpi-tables.ts point here. */
export const PM1_EVENT_PORT = 0x600;
export const PM1_CONTROL_PORT = 0x604;
/** SLP_TYP of soft-off, as the \_S5 object of the DSDT says. */
export const SLEEP_TYPE_S5 = 5;

const SLEEP_ENABLE = 1 << 13;
const SCI_ENABLE = 1;

const PowerState = section("vmm.power", {
  version: 1,
  required: true,
  fixed: struct("vmm_power", 8, { enable: u32(0), reserved: u32(4) }),
});

/** Fixed-hardware ACPI, as far as soft-off needs it. Source: ACPI specification, PM1 Control Registers. */
export class AcpiPower implements PortDevice {
  readonly #powerOff: () => void;
  #enable = 0;

  constructor(powerOff: () => void) {
    this.#powerOff = powerOff;
  }

  /** Section vmm.power. */
  save(): Section {
    return PowerState.encode(0, { enable: this.#enable });
  }
  /** A sentence: why not. */
  restore(sections: readonly Section[]): string | undefined {
    const state = PowerState.find(sections);
    if (typeof state === "string") return state;
    this.#enable = state.fixed.enable;
    return undefined;
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
