/**
 * What firmware may ask of the machine around it, item by item: QEMU's firmware configuration device by its I/O ports, without DMA. Source:
 * QEMU, Firmware Configuration (fw_cfg) Device.
 */
import { type Section, section, struct, u32 } from "@mkvm/kvm-abi";
import type { PortDevice } from "./port-bus.ts";

export const FIRMWARE_CONFIG_PORT = 0x510;
export const FIRMWARE_CONFIG_PORTS = 2;
const Item = { SIGNATURE: 0, INTERFACE: 1, RAM_BYTES: 3, CPUS: 5, MOST_CPUS: 15, FILES: 0x19 } as const;

const ConfigState = section("vmm.firmware-config", {
  version: 1,
  required: true,
  fixed: struct("vmm_firmware_config", 8, { item: u32(0), at: u32(4) }),
});

export class FirmwareConfig implements PortDevice {
  readonly #items = new Map<number, Uint8Array>();
  #item = 0;
  #at = 0;

  constructor(machine: { ramBytes: number; cpus: number }) {
    const number = (value: number, length: number): Uint8Array =>
      Uint8Array.from({ length }, (_, index) => Math.floor(value / 256 ** index) & 0xff);
    this.#items.set(Item.SIGNATURE, new TextEncoder().encode("QEMU"));
    this.#items.set(Item.INTERFACE, number(1, 4));
    this.#items.set(Item.RAM_BYTES, number(machine.ramBytes, 8));
    this.#items.set(Item.CPUS, number(machine.cpus, 2));
    this.#items.set(Item.MOST_CPUS, number(machine.cpus, 2));
    // A directory with no file in it
    this.#items.set(Item.FILES, number(0, 4));
  }

  /** Section vmm.firmware-config. */
  save(): Section {
    return ConfigState.encode(0, { item: this.#item, at: this.#at });
  }
  /** A sentence: why not. */
  restore(sections: readonly Section[]): string | undefined {
    const state = ConfigState.find(sections);
    if (typeof state === "string") return state;
    this.#item = state.fixed.item;
    this.#at = state.fixed.at;
    return undefined;
  }

  /** The next byte of the item; zeros behind its end. */
  read(port: number): number {
    return port === FIRMWARE_CONFIG_PORT ? 0 : (this.#items.get(this.#item)?.[this.#at++] ?? 0);
  }

  write(port: number, _size: number, value: number): void {
    if (port !== FIRMWARE_CONFIG_PORT) return;
    this.#item = value & 0xffff;
    this.#at = 0;
  }
}
