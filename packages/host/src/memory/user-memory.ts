/** A process's memory: user addresses are offsets in its bank, so a pointer of the program indexes the bank's views directly. */
import { hpa, type MemoryBank } from "@mkvm/hw-x86";
import { Errno, type Hva, type PhysicalAddress, type UserMemory } from "@mkvm/kvm-abi";
import { PageAllocator, pageBytes } from "./page-allocator.ts";

const hugePageBytes = 0x20_0000;
/** What the CPU keeps for itself, buffers of the program, page tables of two modules at once, VMCSs. */
const roomBytes = 96 * 1024 * 1024;
export const largestBankBytes = 0x1_0000_0000;

/** Bytes of the bank for a process whose guests have `memoryBytes` of RAM. */
export function bankBytesFor(memoryBytes: number): number {
  const wanted = memoryBytes + (memoryBytes >> 6) + roomBytes;
  return Math.ceil(wanted / 65536) * 65536;
}

export class BankUserMemory implements UserMemory {
  readonly bank: MemoryBank;
  readonly pages: PageAllocator;
  readonly #watchers = new Set<(address: Hva, length: number) => void>();

  constructor(bank: MemoryBank, pages = new PageAllocator(bank.u8, bank.firstFreeOffset)) {
    this.bank = bank;
    this.pages = pages;
  }

  read(address: Hva, length: number): Uint8Array | undefined {
    return this.pages.isUser(address, length) ? this.bank.u8.slice(address, address + length) : undefined;
  }

  write(address: Hva, bytes: Uint8Array): boolean {
    if (!this.pages.isUser(address, bytes.length)) return false;
    this.bank.u8.set(bytes, address);
    return true;
  }

  translate(address: Hva): PhysicalAddress {
    return this.pages.isUser(address, 1) ? hpa(this.bank.id, address) : -Errno.EFAULT;
  }

  isMapped(address: Hva, length: number): boolean {
    return this.pages.isUser(address, length);
  }

  /** The mapped bytes themselves, undefined for EFAULT. */
  view(address: Hva, length: number): Uint8Array | undefined {
    return this.pages.isUser(address, length) ? this.bank.u8.subarray(address, address + length) : undefined;
  }

  /** Anonymous memory; an address, or a negative errno. */
  mapAnonymous(lengthBytes: number): Hva {
    if (!(lengthBytes > 0)) return -Errno.EINVAL;
    const count = Math.ceil(lengthBytes / pageBytes);
    const align = lengthBytes >= hugePageBytes ? hugePageBytes / pageBytes : 1;
    return this.pages.allocateUser(count, align) ?? -Errno.ENOMEM;
  }

  unmap(address: Hva, lengthBytes: number): number {
    if (!(lengthBytes > 0) || !this.isMapped(address, lengthBytes)) return -Errno.EINVAL;
    const count = Math.ceil(lengthBytes / pageBytes);
    for (const unmapped of [...this.#watchers]) unmapped(address, count * pageBytes);
    return this.pages.freeUser(address, count) ? 0 : -Errno.EINVAL;
  }

  watchUnmapped(unmapped: (address: Hva, length: number) => void): () => void {
    this.#watchers.add(unmapped);
    return () => this.#watchers.delete(unmapped);
  }
}
