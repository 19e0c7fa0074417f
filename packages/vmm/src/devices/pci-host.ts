/**
 * The PCI bus of a PC with Intel's 440FX: the host bridge, the bridge to ISA devices, and the power management function, without which
 * UEFI firmware does not know the machine. Nothing else is on the bus. Source: PCI Local Bus Specification, Configuration Space;
 * Intel 440FX PCIset, Intel 82371AB (PIIX4), their datasheets.
 */
import { bytes, type Section, section, struct, u32 } from "@mkvm/kvm-abi";
import type { PortDevice } from "./port-bus.ts";

export const PCI_ADDRESS_PORT = 0xcf8;
export const PCI_PORTS = 8;
const PCI_DATA_PORT = 0xcfc;
/** In the middle of the address register, and told from it by the size of the access. */
const RESET_PORT = 0xcf9;
const RESET_CPU = 4;
const ENABLED = 0x8000_0000;
const SPACE_BYTES = 256;

interface PciFunction {
  readonly device: number;
  readonly function: number;
  readonly vendorId: number;
  readonly deviceId: number;
  /** Class, subclass, interface, revision. */
  readonly classCode: number;
  readonly isMultifunction: boolean;
}
const FUNCTIONS: readonly PciFunction[] = [
  { device: 0, function: 0, vendorId: 0x8086, deviceId: 0x1237, classCode: 0x0600_0002, isMultifunction: false },
  { device: 1, function: 0, vendorId: 0x8086, deviceId: 0x7000, classCode: 0x0601_0000, isMultifunction: true },
  { device: 1, function: 3, vendorId: 0x8086, deviceId: 0x7113, classCode: 0x0680_0003, isMultifunction: true },
];
const FUNCTION_COUNT = 3;
/** Registers that software cannot change: identification, class, header type, and base addresses, of which there are none. */
const isReadOnly = (register: number): boolean =>
  register < 4 || (register >= 8 && register < 12) || (register >= 14 && register < 0x3c);

const BusState = section("vmm.pci", {
  version: 1,
  required: true,
  fixed: struct("vmm_pci", 8 + FUNCTION_COUNT * SPACE_BYTES, {
    address: u32(0),
    reserved: u32(4),
    spaces: bytes(8, FUNCTION_COUNT * SPACE_BYTES),
  }),
});

export class PciHost implements PortDevice {
  readonly #reset: () => void;
  readonly #spaces = new Uint8Array(FUNCTION_COUNT * SPACE_BYTES);
  #address = 0;

  constructor(reset: () => void) {
    this.#reset = reset;
    const view = new DataView(this.#spaces.buffer);
    FUNCTIONS.forEach(({ vendorId, deviceId, classCode, isMultifunction }, index) => {
      const at = index * SPACE_BYTES;
      view.setUint16(at, vendorId, true);
      view.setUint16(at + 2, deviceId, true);
      view.setUint16(at + 4, 7, true); // I/O, memory, bus master
      view.setUint32(at + 8, classCode, true);
      if (isMultifunction) view.setUint8(at + 14, 0x80);
    });
  }

  /** Section vmm.pci. */
  save(): Section {
    return BusState.encode(0, { address: this.#address, spaces: this.#spaces });
  }
  /** A sentence: why not. */
  restore(sections: readonly Section[]): string | undefined {
    const state = BusState.find(sections);
    if (typeof state === "string") return state;
    this.#address = state.fixed.address;
    this.#spaces.set(state.fixed.spaces);
    return undefined;
  }

  read(port: number, size: number): number {
    if (port < PCI_DATA_PORT) return port === PCI_ADDRESS_PORT && size === 4 ? this.#address : 0;
    const at = this.#selected();
    let value = 0;
    for (let i = size - 1; i >= 0; i--) {
      const register = (this.#address & 0xfc) + port - PCI_DATA_PORT + i;
      value = value * 256 + (at === undefined ? 0xff : (this.#spaces[at + (register & 0xff)] as number));
    }
    return value;
  }

  write(port: number, size: number, value: number): void {
    if (port === PCI_ADDRESS_PORT && size === 4) this.#address = value >>> 0;
    else if (port === RESET_PORT && (value & RESET_CPU) !== 0) this.#reset();
    if (port < PCI_DATA_PORT) return;
    const at = this.#selected();
    if (at === undefined) return;
    for (let i = 0; i < size; i++) {
      const register = (this.#address & 0xfc) + port - PCI_DATA_PORT + i;
      if (!isReadOnly(register)) this.#spaces[at + (register & 0xff)] = value >>> (8 * i);
    }
  }

  /** Where the configuration space begins that the address register selects; undefined where there is no function. */
  #selected(): number | undefined {
    if ((this.#address & ENABLED) === 0 || ((this.#address >>> 16) & 0xff) !== 0) return undefined;
    const device = (this.#address >>> 11) & 31;
    const number = (this.#address >>> 8) & 7;
    const index = FUNCTIONS.findIndex((each) => each.device === device && each.function === number);
    return index < 0 ? undefined : index * SPACE_BYTES;
  }
}
