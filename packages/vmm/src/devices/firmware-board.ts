/** What UEFI firmware needs of a PC around it beside what every VM has: a PCI bus, power management, its questions, a flash chip. */
import type { Section } from "@mkvm/kvm-abi";
import { FIRMWARE_CONFIG_PORT, FIRMWARE_CONFIG_PORTS, FirmwareConfig } from "./firmware-config.ts";
import { Flash, type FlashChip } from "./flash.ts";
import type { MemoryBus } from "./memory-bus.ts";
import { PCI_ADDRESS_PORT, PCI_PORTS, PciHost } from "./pci-host.ts";
import { PIIX_POWER_PORT, PIIX_POWER_PORTS, PiixPower } from "./piix-power.ts";
import type { PortBus } from "./port-bus.ts";

export interface FirmwareBoardHost {
  readonly ports: PortBus;
  readonly memory: MemoryBus;
  readonly ramBytes: number;
  readonly cpus: number;
  nowNs(): number;
  reset(): void;
  powerOff(): void;
}

export class FirmwareBoard {
  readonly #flash: Flash | undefined;
  readonly #devices: readonly { save(): Section; restore(sections: readonly Section[]): string | undefined }[];

  /** `chip`: undefined where the firmware has no place for variables that it can write. */
  constructor(host: FirmwareBoardHost, chip: FlashChip | undefined) {
    const pci = new PciHost(() => host.reset());
    const config = new FirmwareConfig(host);
    host.ports.attach(pci, PCI_ADDRESS_PORT, PCI_PORTS);
    host.ports.attach(config, FIRMWARE_CONFIG_PORT, FIRMWARE_CONFIG_PORTS);
    host.ports.attach(
      new PiixPower(
        () => host.nowNs(),
        () => host.powerOff(),
      ),
      PIIX_POWER_PORT,
      PIIX_POWER_PORTS,
    );
    this.#flash = chip && new Flash(chip);
    if (this.#flash) host.memory.attach(this.#flash);
    this.#devices = this.#flash ? [pci, config, this.#flash] : [pci, config];
  }

  /** Has what the firmware wrote last kept: the VM ends. */
  end(): void {
    this.#flash?.flush();
  }

  save(): Section[] {
    return this.#devices.map((device) => device.save());
  }
  /** A sentence: why not. */
  restore(sections: readonly Section[]): string | undefined {
    for (const device of this.#devices) {
      const refused = device.restore(sections);
      if (refused !== undefined) return refused;
    }
    return undefined;
  }

  /** Whether a VM that was saved had such a board. */
  static isIn(sections: readonly Section[]): boolean {
    return sections.some(({ name }) => name === "vmm.pci");
  }
}
