import { bytes, type Section, section, struct, u32 } from "@mkvm/kvm-abi";
import type { PortDevice } from "./port-bus.ts";

export const RTC_INDEX_PORT = 0x70;

const SECONDS = 0,
  MINUTES = 2,
  HOURS = 4,
  WEEKDAY = 6,
  DAY = 7,
  MONTH = 8,
  YEAR = 9,
  STATUS_A = 10,
  STATUS_B = 11,
  STATUS_C = 12,
  STATUS_D = 13,
  CENTURY = 0x32;
/** 32.768 kHz time base, 1024 Hz rate. */
const STATUS_A_VALUE = 0x26;
const STATUS_B_24_HOURS = 2;
const STATUS_D_VALID = 0x80;

/** Bytes of RAM as PC firmware keeps them, in units of 1 KiB up to 64 MiB and of 64 KiB, less what lies below. */
const BASE_KIB = 0x15,
  EXTENDED_KIB = [0x17, 0x30],
  ABOVE_16_MIB = 0x34,
  ABOVE_4_GIB = 0x5b;
const MIB = 1 << 20;

const ClockState = section("vmm.real-time-clock", {
  version: 1,
  required: true,
  // The time of day is the host's
  fixed: struct("vmm_real_time_clock", 136, { memory: bytes(0, 128), index: u32(128), reserved: u32(132) }),
});

/**
 * The time of day of an MC146818 with its battery-backed memory, which tells firmware how much RAM there is: 24 hours, BCD, never
 * updating while read.
 */
export class RealTimeClock implements PortDevice {
  readonly #nowNs: () => bigint;
  readonly #memory = new Uint8Array(128);
  #index = 0;

  /** `nowNs`: nanoseconds since the epoch, UTC. `ram`: bytes below and above 4 GiB. */
  constructor(nowNs: () => bigint, ram: { lowBytes: number; highBytes: number }) {
    this.#nowNs = nowNs;
    const extendedKib = Math.min((ram.lowBytes - MIB) / 1024, 63 * 1024);
    const units = (bytes: number): number => Math.max(0, Math.floor(bytes / 0x1_0000));
    this.#setWord(BASE_KIB, 640);
    for (const at of EXTENDED_KIB) this.#setWord(at, extendedKib);
    this.#setWord(ABOVE_16_MIB, units(ram.lowBytes - 16 * MIB));
    this.#setWord(ABOVE_4_GIB, units(ram.highBytes));
  }

  #setWord(at: number, value: number): void {
    this.#memory[at] = value & 0xff;
    this.#memory[at + 1] = value >>> 8;
  }

  /** Section vmm.real-time-clock. */
  save(): Section {
    return ClockState.encode(0, { memory: this.#memory, index: this.#index });
  }
  /** A sentence: why not. */
  restore(sections: readonly Section[]): string | undefined {
    const state = ClockState.find(sections);
    if (typeof state === "string") return state;
    this.#memory.set(state.fixed.memory);
    this.#index = state.fixed.index & 0x7f;
    return undefined;
  }

  read(port: number): number {
    return port === RTC_INDEX_PORT ? 0xff : this.#register();
  }

  write(port: number, _size: number, value: number): void {
    if (port === RTC_INDEX_PORT) this.#index = value & 0x7f;
    else if (this.#index > STATUS_D) this.#memory[this.#index] = value;
  }

  #register(): number {
    const now = new Date(Number(this.#nowNs() / 1_000_000n));
    switch (this.#index) {
      case SECONDS:
        return bcd(now.getUTCSeconds());
      case MINUTES:
        return bcd(now.getUTCMinutes());
      case HOURS:
        return bcd(now.getUTCHours());
      case WEEKDAY:
        return now.getUTCDay() + 1;
      case DAY:
        return bcd(now.getUTCDate());
      case MONTH:
        return bcd(now.getUTCMonth() + 1);
      case YEAR:
        return bcd(now.getUTCFullYear() % 100);
      case CENTURY:
        return bcd(Math.floor(now.getUTCFullYear() / 100));
      case STATUS_A:
        return STATUS_A_VALUE;
      case STATUS_B:
        return STATUS_B_24_HOURS;
      case STATUS_C:
        return 0;
      case STATUS_D:
        return STATUS_D_VALID;
      default:
        return this.#memory[this.#index];
    }
  }
}

function bcd(value: number): number {
  return (Math.floor(value / 10) << 4) | (value % 10);
}
