/**
 * What lies outside the processor and its memory, as one CPU reaches it: ports and memory-mapped registers. Where nothing answers reads are
 * all ones and writes are lost. The other way round it is the memory that functions reach which master the bus.
 */
import { bankOf, type Hpa, offsetOf } from "./addresses.ts";
import type { LocalApic } from "./local-apic.ts";
import type { MemoryBanks } from "./memory-banks.ts";
import type { PciBus } from "./pci/bus.ts";
import { PciRoot } from "./pci/pci-root.ts";
import type { BankEngine } from "./root-interface.ts";

/** Ports and registers of the machine's devices. Memory accesses are aligned. */
export interface DeviceAccess {
  in(port: number, bytes: 1 | 2 | 4): number;
  out(port: number, bytes: 1 | 2 | 4, value: number): void;
  read(address: Hpa, bytes: 1 | 2 | 4 | 8): bigint;
  write(address: Hpa, bytes: 1 | 2 | 4 | 8, value: bigint): void;
}

/** Messages to these addresses are interrupts. Source: Intel SDM Vol. 3A, Message Address Register Format. */
const INTERRUPT_MESSAGES = 0xfee;

export interface BusCpu {
  readonly memory: MemoryBanks;
  readonly apic: LocalApic;
  engines(): Iterable<BankEngine>;
}

export class HostBus implements DeviceAccess, PciBus {
  readonly pci: PciRoot;
  readonly #cpu: BusCpu;

  constructor(shared: SharedArrayBuffer, cpu: BusCpu) {
    this.#cpu = cpu;
    this.pci = new PciRoot(shared, this);
  }

  in(port: number, bytes: 1 | 2 | 4): number {
    return this.pci.in(port, bytes) ?? 2 ** (8 * bytes) - 1;
  }
  out(port: number, bytes: 1 | 2 | 4, value: number): void {
    this.pci.out(port, bytes, value >>> 0);
  }
  read(address: Hpa, bytes: 1 | 2 | 4 | 8): bigint {
    checkAligned(address, bytes);
    return this.pci.read(address, bytes);
  }
  write(address: Hpa, bytes: 1 | 2 | 4 | 8, value: bigint): void {
    checkAligned(address, bytes);
    this.pci.write(address, bytes, value);
  }

  // For functions that master the bus. They reach the banks that this CPU has

  readMemory(address: number, bytes: number): Uint8Array | undefined {
    const bank = this.#cpu.memory.holding(address, bytes);
    const offset = offsetOf(address as Hpa);
    return bank === undefined || offset < bank.firstFreeOffset ? undefined : bank.u8.slice(offset, offset + bytes);
  }
  writeMemory(address: number, data: Uint8Array): boolean {
    const bank = this.#cpu.memory.holding(address, data.length);
    const offset = offsetOf(address as Hpa);
    // What the CPU keeps in a bank for itself is no memory of the machine
    if (bank === undefined || offset < bank.firstFreeOffset) return false;
    bank.u8.set(data, offset);
    const page = offset - (offset % 4096);
    for (const { bank: other, engine } of this.#cpu.engines())
      if (other.id === bankOf(address as Hpa) && engine.holdsCode(page)) engine.codeWritten(offset, data.length);
    return true;
  }
  writeMessage(address: number, data: number): boolean {
    if (Math.floor(address / 2 ** 20) === INTERRUPT_MESSAGES) {
      this.#cpu.apic.message(address, data);
      return true;
    }
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, data, true);
    return this.writeMemory(address, bytes);
  }
}

function checkAligned(address: number, bytes: number): void {
  if (address % bytes !== 0)
    throw new RangeError(`access of ${bytes} bytes to device memory at 0x${address.toString(16)}: not aligned`);
}
