/**
 * Configuration space of a function: 256 bytes of which each bit is read-only, writable, or cleared by writing 1. Source: PCI Local Bus
 * Specification 3.0, Configuration Space; PCI Express Base Specification, Configuration Space.
 */

export const CONFIGURATION_BYTES = 0x100;

/** Offsets of the type 0 header. */
export const Header = {
  vendorId: 0x00,
  deviceId: 0x02,
  command: 0x04,
  status: 0x06,
  revision: 0x08,
  classCode: 0x09,
  bar0: 0x10,
  subsystemVendorId: 0x2c,
  subsystemId: 0x2e,
  capabilities: 0x34,
  interruptLine: 0x3c,
} as const;

export const Command = { memorySpace: 1 << 1, busMaster: 1 << 2, interruptDisable: 1 << 10 } as const;
export const Status = { capabilities: 1 << 4, receivedMasterAbort: 1 << 13 } as const;

/** A 64-bit memory BAR, not prefetchable. */
const BAR_TYPE = 0x4;

export interface FunctionIds {
  readonly vendor: number;
  readonly device: number;
  /** Base class, subclass, programming interface. */
  readonly classCode: number;
  readonly revision: number;
}

export class ConfigurationSpace {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #writable = new Uint8Array(CONFIGURATION_BYTES);
  readonly #clearedByOne = new Uint8Array(CONFIGURATION_BYTES);
  readonly #ids: FunctionIds;

  /** `bytes`: where the machine keeps it, shared by the CPUs. Nothing can be written before `allow` says so. */
  constructor(bytes: Uint8Array, ids: FunctionIds) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, CONFIGURATION_BYTES);
    this.#ids = ids;
  }

  /** Values after power-up that all functions have. */
  powerOn(): void {
    this.#bytes.fill(0);
    const { vendor, device, classCode, revision } = this.#ids;
    this.#view.setUint16(Header.vendorId, vendor, true);
    this.#view.setUint16(Header.deviceId, device, true);
    this.#view.setUint32(Header.revision, ((classCode << 8) | revision) >>> 0, true);
    this.#view.setUint16(Header.subsystemVendorId, vendor, true);
    this.#view.setUint16(Header.subsystemId, device, true);
  }

  allow(offset: number, bytes: number, writable: number, clearedByOne = 0): void {
    for (let i = 0; i < bytes; i++) {
      this.#writable[offset + i] = (writable >>> (8 * i)) & 0xff;
      this.#clearedByOne[offset + i] = (clearedByOne >>> (8 * i)) & 0xff;
    }
  }

  /** Makes registers `bar` and the one after it a 64-bit memory BAR of `size` bytes, a power of two from 4096 to 2^31. */
  makeBar(bar: number, size: number): void {
    const at = Header.bar0 + 4 * bar;
    this.allow(at, 4, -size >>> 0);
    this.allow(at + 4, 4, 0xffff_ffff);
  }
  /** As firmware assigns it. */
  placeBar(bar: number, address: number): void {
    const at = Header.bar0 + 4 * bar;
    this.#view.setUint32(at, ((address % 0x1_0000_0000) | BAR_TYPE) >>> 0, true);
    this.#view.setUint32(at + 4, Math.floor(address / 0x1_0000_0000), true);
  }
  /** Where software has put it. */
  barAddress(bar: number): number {
    const at = Header.bar0 + 4 * bar;
    return this.get32(at + 4) * 0x1_0000_0000 + ((this.get32(at) & ~0xf) >>> 0);
  }

  get16(offset: number): number {
    return this.#view.getUint16(offset, true);
  }
  get32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }
  /** Whatever software may write. */
  set16(offset: number, value: number): void {
    this.#view.setUint16(offset, value, true);
  }
  set32(offset: number, value: number): void {
    this.#view.setUint32(offset, value, true);
  }

  /** An access of software to 1, 2 or 4 bytes within a doubleword. */
  read(offset: number, bytes: number): number {
    let value = 0;
    for (let i = bytes - 1; i >= 0; i--) value = value * 0x100 + (this.#bytes[offset + i] ?? 0);
    return value;
  }
  write(offset: number, bytes: number, value: number): void {
    for (let i = 0; i < bytes && offset + i < CONFIGURATION_BYTES; i++) {
      const byte = (value >>> (8 * i)) & 0xff;
      const at = offset + i;
      const writable = this.#writable[at] as number;
      const kept = (this.#bytes[at] as number) & ~writable & ~(byte & (this.#clearedByOne[at] as number));
      this.#bytes[at] = kept | (byte & writable);
    }
  }
}
