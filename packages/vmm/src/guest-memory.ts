import { DEVICE_HOLE, FOUR_GIB } from "./memory-layout.ts";

/** Guest RAM as the VMM sees it: one block of its own memory, split around the device hole; and the ROM that firmware lies in. */
export class GuestMemory {
  /** Size of guest RAM in bytes. */
  readonly bytes: number;
  /** Address of the block in the process. */
  readonly address: number;
  /** Firmware's ROM, which ends at 4 GiB: its place in the process, and how much of its beginning is a flash chip. */
  rom: { readonly address: number; readonly bytes: number; readonly flashBytes: number } | undefined;
  readonly #allocate: (bytes: number) => number;
  readonly #u8: Uint8Array;
  readonly #view: DataView;

  /** `allocate`: gives the address of so many bytes of the process, or throws VmmError. */
  constructor(memory: { u8: Uint8Array; view: DataView }, allocate: (bytes: number) => number, bytes: number) {
    const address = allocate(bytes);
    this.#allocate = allocate;
    this.#u8 = memory.u8;
    this.#view = memory.view;
    this.address = address;
    this.bytes = bytes;
  }

  /** Where memory lies, as it is to be mapped again. */
  blocks(): { address: number; lengthBytes: number }[] {
    const ram = { address: this.address, lengthBytes: this.bytes };
    return this.rom ? [ram, { address: this.rom.address, lengthBytes: this.rom.bytes }] : [ram];
  }

  /** Bytes of RAM below the device hole. */
  get lowBytes(): number {
    return Math.min(this.bytes, DEVICE_HOLE);
  }

  addRom(bytes: number, flashBytes = 0): void {
    this.rom = { address: this.#allocate(bytes), bytes, flashBytes };
  }
  /** The flash chip's contents: a view. */
  flash(): Uint8Array | undefined {
    const { rom } = this;
    return rom && rom.flashBytes > 0 ? this.#u8.subarray(rom.address, rom.address + rom.flashBytes) : undefined;
  }

  /** Bytes of RAM from 4 GiB on. */
  get highBytes(): number {
    return this.bytes - this.lowBytes;
  }

  /** Process address of guest physical `gpa`, for `length` bytes that lie in RAM or in the ROM. Throws RangeError otherwise. */
  at(gpa: number, length: number): number {
    const { rom } = this;
    if (rom && gpa >= FOUR_GIB - rom.bytes && gpa + length <= FOUR_GIB) return rom.address + gpa - (FOUR_GIB - rom.bytes);
    if (gpa >= 0 && gpa + length <= this.lowBytes) return this.address + gpa;
    const high = gpa - FOUR_GIB;
    if (high >= 0 && high + length <= this.bytes - this.lowBytes) return this.address + this.lowBytes + high;
    throw new RangeError(`guest memory has no ${length} bytes at 0x${gpa.toString(16)}`);
  }

  /** All of guest RAM, as it is: a view. */
  contents(): Uint8Array {
    return this.#u8.subarray(this.address, this.address + this.bytes);
  }

  write(gpa: number, bytes: Uint8Array): void {
    this.#u8.set(bytes, this.at(gpa, bytes.length));
  }

  fill(gpa: number, length: number): void {
    const start = this.at(gpa, length);
    this.#u8.fill(0, start, start + length);
  }

  setU8(gpa: number, value: number): void {
    this.#u8[this.at(gpa, 1)] = value;
  }

  setU16(gpa: number, value: number): void {
    this.#view.setUint16(this.at(gpa, 2), value, true);
  }

  setU32(gpa: number, value: number): void {
    this.#view.setUint32(this.at(gpa, 4), value, true);
  }

  setU64(gpa: number, value: number | bigint): void {
    this.#view.setBigUint64(this.at(gpa, 8), BigInt(value), true);
  }
}
