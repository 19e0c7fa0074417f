/**
 * A function that copies memory on command: something that masters the bus and sends MSI-X messages, for software that drives, shares or
 * passes through devices. Its registers are in docs/dma-test-function.md. A command is carried out by the CPU that writes it,
 * before the write returns.
 */
import type { PciBus } from "./bus.ts";
import { Command, ConfigurationSpace, Header, Status } from "./configuration-space.ts";
import type { PciFunction } from "./function.ts";
import { MSIX_BAR_BYTES, Msix } from "./msix.ts";

/** No assigned ids: those of no vendor, for a device that exists here only. */
export const MKVM_VENDOR_ID = 0x6d6b;
const DEVICE_ID = 0x0001;
/** Unassigned class. */
const CLASS_CODE = 0xff_0000;

const REGISTER_BAR = 0;
const MSIX_BAR = 2;
const REGISTER_BYTES = 0x1000;
const MSIX_CAPABILITY = 0x40;
export const MSIX_ENTRIES = 4;

/** Offsets of registers in BAR 0. */
export const DmaRegister = {
  id: 0x00,
  status: 0x04,
  source: 0x08,
  destination: 0x10,
  length: 0x18,
  command: 0x1c,
  interrupt: 0x20,
  error: 0x24,
  transferred: 0x28,
  trigger: 0x2c,
} as const;
const IDENTITY = 0x6d6b_0001;
export const DmaStatus = { busy: 1 << 0, done: 1 << 1, failed: 1 << 2 } as const;
export const DmaCommand = { copy: 1 << 0, interrupt: 1 << 1 } as const;
export const DmaError = { none: 0, noBusMaster: 1, sourceAbort: 2, destinationAbort: 3 } as const;

const WRITABLE: ReadonlySet<number> = new Set([
  DmaRegister.source,
  DmaRegister.source + 4,
  DmaRegister.destination,
  DmaRegister.destination + 4,
  DmaRegister.length,
  DmaRegister.interrupt,
]);

/** Shared memory of the function: configuration space, the MSI-X BAR, registers. */
export const DMA_FUNCTION_BYTES = 0x100 + MSIX_BAR_BYTES + 0x100;

export class DmaTestFunction implements PciFunction {
  readonly configuration: ConfigurationSpace;
  readonly #msix: Msix;
  readonly #registers: Uint32Array;
  readonly #bus: PciBus;

  constructor(shared: SharedArrayBuffer, offset: number, bus: PciBus) {
    this.#bus = bus;
    this.configuration = new ConfigurationSpace(new Uint8Array(shared, offset, 0x100), {
      vendor: MKVM_VENDOR_ID,
      device: DEVICE_ID,
      classCode: CLASS_CODE,
      revision: 1,
    });
    const table = new Uint32Array(shared, offset + 0x100, MSIX_BAR_BYTES >>> 2);
    this.#registers = new Uint32Array(shared, offset + 0x100 + MSIX_BAR_BYTES, 0x40);
    this.#msix = new Msix(this.configuration, MSIX_CAPABILITY, MSIX_ENTRIES, table, ({ address, data }) => {
      if (this.#isMaster() && !this.#bus.writeMessage(address, data)) this.#noteAbort();
    });
    const { configuration } = this;
    const command = Command.memorySpace | Command.busMaster | Command.interruptDisable;
    configuration.allow(Header.command, 4, command, Status.receivedMasterAbort << 16);
    configuration.allow(Header.interruptLine, 1, 0xff);
    configuration.makeBar(REGISTER_BAR, REGISTER_BYTES);
    configuration.makeBar(MSIX_BAR, MSIX_BAR_BYTES);
    this.#msix.allow();
  }

  powerOn(window: number): void {
    const { configuration } = this;
    configuration.powerOn();
    configuration.set16(Header.status, Status.capabilities);
    configuration.set16(Header.capabilities, MSIX_CAPABILITY);
    configuration.placeBar(REGISTER_BAR, window);
    configuration.placeBar(MSIX_BAR, window + REGISTER_BYTES);
    this.#registers.fill(0);
    this.#registers[DmaRegister.id >>> 2] = IDENTITY;
    this.#msix.powerOn(MSIX_BAR);
  }

  configurationWritten(): void {
    this.#msix.settle();
  }

  claims(address: number): boolean {
    if ((this.configuration.get16(Header.command) & Command.memorySpace) === 0) return false;
    return within(address, this.configuration.barAddress(REGISTER_BAR), REGISTER_BYTES) || this.#isMsix(address);
  }
  #isMsix(address: number): boolean {
    return within(address, this.configuration.barAddress(MSIX_BAR), MSIX_BAR_BYTES);
  }

  read(address: number): number {
    const offset = address % 0x1000;
    return this.#isMsix(address) ? this.#msix.read(offset) : (this.#registers[offset >>> 2] ?? 0);
  }

  write(address: number, value: number): void {
    const offset = address % 0x1000;
    if (this.#isMsix(address)) this.#msix.write(offset, value);
    else if (WRITABLE.has(offset)) this.#registers[offset >>> 2] = value;
    else if (offset === DmaRegister.status)
      Atomics.and(this.#registers, DmaRegister.status >>> 2, ~(value & (DmaStatus.done | DmaStatus.failed)));
    else if (offset === DmaRegister.command) this.#command(value);
    else if (offset === DmaRegister.trigger) this.#msix.raise(value);
  }

  #isMaster(): boolean {
    return (this.configuration.get16(Header.command) & Command.busMaster) !== 0;
  }
  #noteAbort(): void {
    this.configuration.set16(Header.status, this.configuration.get16(Header.status) | Status.receivedMasterAbort);
  }

  /** Another CPU's command that is under way has it ignored. */
  #command(value: number): void {
    const registers = this.#registers;
    const at = DmaRegister.status >>> 2;
    if ((value & DmaCommand.copy) === 0 || (Atomics.or(registers, at, DmaStatus.busy) & DmaStatus.busy) !== 0) return;
    registers[DmaRegister.transferred >>> 2] = 0;
    const error = this.#copy();
    registers[DmaRegister.error >>> 2] = error;
    if (error === DmaError.sourceAbort || error === DmaError.destinationAbort) this.#noteAbort();
    Atomics.or(registers, at, error === DmaError.none ? DmaStatus.done : DmaStatus.done | DmaStatus.failed);
    Atomics.and(registers, at, ~DmaStatus.busy);
    if ((value & DmaCommand.interrupt) !== 0) this.#msix.raise(registers[DmaRegister.interrupt >>> 2] as number);
  }

  /** Page by page, so that what lies before an address where no memory answers is copied. */
  #copy(): number {
    if (!this.#isMaster()) return DmaError.noBusMaster;
    const length = this.#registers[DmaRegister.length >>> 2] as number;
    const source = this.#address(DmaRegister.source);
    const destination = this.#address(DmaRegister.destination);
    for (let done = 0; done < length; ) {
      const from = source + done;
      const to = destination + done;
      const bytes = Math.min(length - done, 4096 - (from % 4096), 4096 - (to % 4096));
      const data = this.#bus.readMemory(from, bytes);
      if (data === undefined) return DmaError.sourceAbort;
      if (!this.#bus.writeMemory(to, data)) return DmaError.destinationAbort;
      done += bytes;
      this.#registers[DmaRegister.transferred >>> 2] = done;
    }
    return DmaError.none;
  }
  #address(register: number): number {
    return (this.#registers[(register >>> 2) + 1] as number) * 0x1_0000_0000 + (this.#registers[register >>> 2] as number);
  }
}

function within(address: number, base: number, bytes: number): boolean {
  return address >= base && address < base + bytes;
}
