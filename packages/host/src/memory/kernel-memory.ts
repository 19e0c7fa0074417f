/** Pages that modules allocate: from the bank of the process they serve, or from the CPU's own bank. */

import type { HardwareSanitizer, Hpa } from "@mkvm/hw-x86";
import { bankOf, hpa, type MemoryBank, offsetOf, type PhysicalMemory } from "@mkvm/hw-x86";
import { Errno, type KernelMemory, type PhysicalAddress, type Process } from "@mkvm/kvm-abi";
import { PageAllocator } from "./page-allocator.ts";

/** Room in a CPU's own bank beyond what the CPU keeps for itself: VMXON regions and the like. */
const cpuBankBytes = 32 * 1024 * 1024;

export class CpuMemory {
  readonly #physical: PhysicalMemory;
  readonly #sanitizer: HardwareSanitizer;
  readonly #allocators = new Map<number, PageAllocator>();
  #cpuBank: MemoryBank | undefined;
  readonly #cpuBankId: number;

  constructor(physical: PhysicalMemory, sanitizer: HardwareSanitizer, cpuBankId: number) {
    this.#physical = physical;
    this.#sanitizer = sanitizer;
    this.#cpuBankId = cpuBankId;
  }

  /** Makes a process's pages available to modules. */
  adopt(bank: number, pages: PageAllocator): void {
    this.#allocators.set(bank, pages);
  }

  forget(bank: number): void {
    this.#allocators.delete(bank);
  }

  allocatePages(bank: number, count: number, alignPages: number): PhysicalAddress {
    if (!(count > 0) || !(alignPages > 0)) return -Errno.EINVAL;
    const offset = this.#allocators.get(bank)?.allocateKernel(count, alignPages);
    if (offset === undefined) return -Errno.ENOMEM;
    this.#sanitizer.pagesAllocated(hpa(bank, offset), count);
    return hpa(bank, offset);
  }

  freePages(address: PhysicalAddress, count: number): boolean {
    const bank = bankOf(address as Hpa);
    const allocator = this.#allocators.get(bank);
    if (!allocator?.freeKernel(offsetOf(address as Hpa), count)) return false;
    this.#sanitizer.pagesFreed(address as Hpa, count);
    return true;
  }

  bytes(address: PhysicalAddress, length: number): Uint8Array {
    return this.#physical.bytes(address as Hpa, length);
  }

  allocateCpuPages(count: number): PhysicalAddress {
    if (!this.#cpuBank) {
      this.#cpuBank = this.#physical.createBank(this.#cpuBankId, cpuBankBytes);
      this.adopt(this.#cpuBankId, new PageAllocator(this.#cpuBank.u8, this.#cpuBank.firstFreeOffset));
    }
    return this.allocatePages(this.#cpuBankId, count, 1);
  }

  /** What one module sees. `complain` hears of its mistakes. */
  forModule(complain: (message: string) => void): KernelMemory {
    return {
      allocatePages: (process: Process, count, alignPages = 1) => this.allocatePages(process.bank, count, alignPages),
      freePages: (address, count) => {
        if (!this.freePages(address, count)) complain(`freed ${count} pages at ${address.toString(16)} that it does not own`);
      },
      bytes: (address, length) => this.bytes(address, length),
      allocateCpuPages: (count) => this.allocateCpuPages(count),
    };
  }
}
