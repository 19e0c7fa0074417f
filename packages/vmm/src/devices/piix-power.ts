/**
 * Power management of the PIIX4, where UEFI firmware puts its registers: the timer that it measures time by, and soft-off. Source: Intel
 * 82371AB (PIIX4), Power Management I/O Space Registers; ACPI specification, Power Management Timer.
 */
import type { PortDevice } from "./port-bus.ts";

export const PIIX_POWER_PORT = 0xb000;
export const PIIX_POWER_PORTS = 0x40;
const PM1_CONTROL = PIIX_POWER_PORT + 4;
const TIMER = PIIX_POWER_PORT + 8;
const TIMER_HZ = 3_579_545;
const TIMER_BITS = 24;
const SLEEP_ENABLE = 1 << 13;
/** SLP_TYP of soft-off on this chip. */
const SOFT_OFF = 0;

export class PiixPower implements PortDevice {
  readonly #nowNs: () => number;
  readonly #powerOff: () => void;

  constructor(nowNs: () => number, powerOff: () => void) {
    this.#nowNs = nowNs;
    this.#powerOff = powerOff;
  }

  read(port: number): number {
    if (port !== TIMER) return 0;
    return Math.floor((this.#nowNs() * TIMER_HZ) / 1e9) % 2 ** TIMER_BITS;
  }

  write(port: number, size: number, value: number): void {
    if (port === PM1_CONTROL && size >= 2 && (value & SLEEP_ENABLE) !== 0 && ((value >> 10) & 7) === SOFT_OFF) this.#powerOff();
  }
}
