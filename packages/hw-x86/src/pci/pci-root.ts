/**
 * The root of the machine's PCI bus: configuration by ports CF8h and CFCh and by an ECAM window, and the memory windows of functions. What
 * functions hold lies in memory that the CPUs share, so that each CPU's thread has a root of its own that shows the same. Source: PCI Local
 * Bus Specification 3.0, Configuration Mechanism #1; PCI Express Base Specification, PCI Express Enhanced Configuration Access Mechanism.
 */
import type { PciBus } from "./bus.ts";
import { CONFIGURATION_BYTES, ConfigurationSpace } from "./configuration-space.ts";
import { DMA_FUNCTION_BYTES, DmaTestFunction, MKVM_VENDOR_ID } from "./dma-test-function.ts";
import type { PciFunction } from "./function.ts";

const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;
const ENABLE = 0x8000_0000;
/** Host bridge: base class 06h, subclass 00h. */
const HOST_BRIDGE_CLASS = 0x06_0000;
const HOST_BRIDGE_DEVICE = 0x0000;

/** The last 4 GiB of physical addresses, where no bank lies: configuration space of bus 0, and what firmware gives to functions. */
const DEVICE_SPACE = 0xf_ffff * 2 ** 32;
export const ECAM_BASE = DEVICE_SPACE + 0xe000_0000;
const ECAM_BYTES = 0x10_0000;
export const FUNCTION_WINDOW = DEVICE_SPACE + 0xfe00_0000;

const ADDRESS_BYTES = 16;
const HOST_BRIDGE = ADDRESS_BYTES;
const DMA_FUNCTION = HOST_BRIDGE + CONFIGURATION_BYTES;
/** What the CPUs of a machine share of its PCI bus. */
export const PCI_BYTES = DMA_FUNCTION + DMA_FUNCTION_BYTES;

class HostBridge implements PciFunction {
  readonly configuration: ConfigurationSpace;
  constructor(bytes: Uint8Array) {
    const ids = { vendor: MKVM_VENDOR_ID, device: HOST_BRIDGE_DEVICE, classCode: HOST_BRIDGE_CLASS, revision: 0 };
    this.configuration = new ConfigurationSpace(bytes, ids);
  }
  powerOn(): void {
    this.configuration.powerOn();
  }
  configurationWritten(): void {}
  claims(): boolean {
    return false;
  }
  read(): number {
    return 0;
  }
  write(): void {}
}

export class PciRoot {
  /** The last doubleword written to CF8h. */
  readonly #address: Uint32Array;
  /** By device number; each has function 0 only. */
  readonly #functions: readonly PciFunction[];

  constructor(shared: SharedArrayBuffer, bus: PciBus) {
    this.#address = new Uint32Array(shared, 0, 1);
    this.#functions = [
      new HostBridge(new Uint8Array(shared, HOST_BRIDGE, CONFIGURATION_BYTES)),
      new DmaTestFunction(shared, DMA_FUNCTION, bus),
    ];
  }

  powerOn(): void {
    this.#address[0] = 0;
    for (const each of this.#functions) each.powerOn(FUNCTION_WINDOW);
  }

  // Ports; undefined and false: not one of the root's

  in(port: number, bytes: number): number | undefined {
    if (port === CONFIG_ADDRESS && bytes === 4) return this.#address[0] as number;
    if (!isData(port, bytes)) return undefined;
    const address = this.#address[0] as number;
    if (address < ENABLE) return undefined;
    return this.#readConfiguration((address >>> 8) & 0xffff, (address & 0xfc) + (port & 3), bytes);
  }
  out(port: number, bytes: number, value: number): boolean {
    if (port === CONFIG_ADDRESS && bytes === 4) {
      this.#address[0] = value & 0x80ff_fffc;
      return true;
    }
    const address = this.#address[0] as number;
    if (!isData(port, bytes) || address < ENABLE) return false;
    this.#writeConfiguration((address >>> 8) & 0xffff, (address & 0xfc) + (port & 3), bytes, value);
    return true;
  }

  /** `place`: bus, device and function as 16 bits. */
  #functionAt(place: number): PciFunction | undefined {
    return (place & 0xff07) === 0 ? this.#functions[(place >>> 3) & 31] : undefined;
  }
  #readConfiguration(place: number, offset: number, bytes: number): number {
    // Nobody claims the cycle, and the bus reads as ones
    return this.#functionAt(place)?.configuration.read(offset, bytes) ?? ones(bytes);
  }
  #writeConfiguration(place: number, offset: number, bytes: number, value: number): void {
    const target = this.#functionAt(place);
    target?.configuration.write(offset, bytes, value);
    target?.configurationWritten();
  }

  // Memory: accesses of 1, 2, 4 or 8 bytes, aligned

  read(address: number, bytes: number): bigint {
    if (isEcam(address)) {
      const offset = address - ECAM_BASE;
      const low = this.#readConfiguration(offset >>> 12, offset & 0xfff, Math.min(bytes, 4));
      if (bytes < 8) return BigInt(low);
      return BigInt(low) | (BigInt(this.#readConfiguration(offset >>> 12, (offset & 0xfff) + 4, 4)) << 32n);
    }
    const target = this.#functions.find((each) => each.claims(address));
    if (target === undefined) return BigInt.asUintN(8 * bytes, -1n);
    const aligned = address - (address % 4);
    const low = BigInt(target.read(aligned));
    if (bytes === 8) return low | (BigInt(target.read(aligned + 4)) << 32n);
    return BigInt.asUintN(8 * bytes, low >> BigInt(8 * (address % 4)));
  }

  /** Functions take doublewords and quadwords; the bus drops others. */
  write(address: number, bytes: number, value: bigint): void {
    const low = Number(BigInt.asUintN(32, value));
    if (isEcam(address)) {
      const offset = address - ECAM_BASE;
      this.#writeConfiguration(offset >>> 12, offset & 0xfff, Math.min(bytes, 4), low);
      if (bytes === 8)
        this.#writeConfiguration(offset >>> 12, (offset & 0xfff) + 4, 4, Number(BigInt.asUintN(32, value >> 32n)));
      return;
    }
    const target = this.#functions.find((each) => each.claims(address));
    if (target === undefined || bytes < 4) return;
    target.write(address, low);
    if (bytes === 8) target.write(address + 4, Number(BigInt.asUintN(32, value >> 32n)));
  }
}

const isEcam = (address: number): boolean => address >= ECAM_BASE && address < ECAM_BASE + ECAM_BYTES;
const isData = (port: number, bytes: number): boolean => port >= CONFIG_DATA && port + bytes <= CONFIG_DATA + 4;
const ones = (bytes: number): number => 2 ** (8 * bytes) - 1;
