/** What software tells the hardware sanitizer, on one logical CPU. */
import { bankOf, type Hpa, offsetOf } from "../addresses.ts";
import type { HardwareSanitizer } from "../logical-cpu.ts";
import type { MemoryBank } from "../physical-memory.ts";
import type { RootCpu } from "../root-interface.ts";
import type { HostRegisters } from "./host-registers.ts";
import { Sampling } from "./sampling.ts";

/** Registers are compared at returns to user code: a module that leaves one does so time and again. */
const FIRST_RETURNS = 256;
const SAMPLE = 16;

/** The vendor's unit as the sanitizer sees it. */
export interface SanitizedUnit {
  /** The structure that the unit works with or has worked with last: "VMCS 300012000". */
  readonly lastUsed: string;
  /** Pages of the bank, from `offset` on, were given back to the kernel's allocator. */
  pagesFreed(bank: MemoryBank, offset: number, count: number): void;
}

export class Sanitizer implements HardwareSanitizer {
  readonly #cpu: RootCpu;
  readonly #registers: HostRegisters;
  readonly #unit: SanitizedUnit;
  readonly #sampling = new Sampling(FIRST_RETURNS, SAMPLE);
  readonly #reported = new Set<string>();
  readonly #isReported = (name: string): boolean => this.#reported.has(name);

  constructor(cpu: RootCpu, registers: HostRegisters, unit: SanitizedUnit) {
    this.#cpu = cpu;
    this.#registers = registers;
    this.#unit = unit;
  }

  keepHostRegisters(): void {
    this.#registers.keep();
  }

  returnsToUser(): void {
    if (!this.#sampling.isDue()) return;
    for (;;) {
      const found = this.#registers.clobbered(this.#isReported);
      if (found === undefined) return;
      this.#reported.add(found.name);
      const { name, value, kernels } = found;
      this.#cpu.log(
        `sanitizer: CPU ${this.#cpu.id} returns to user code with 0x${value.toString(16)} in ${name}, where the kernel has ` +
          `0x${kernels.toString(16)}; ${this.#unit.lastUsed} was used last`,
      );
    }
  }

  pagesFreed(address: Hpa, count: number): void {
    const bank = this.#cpu.memory.find(bankOf(address));
    if (bank === undefined) return;
    this.#cpu.freedPages.freed(bank, offsetOf(address), count);
    this.#unit.pagesFreed(bank, offsetOf(address), count);
  }
  pagesAllocated(address: Hpa, count: number): void {
    this.#cpu.freedPages.allocated(bankOf(address), offsetOf(address), count);
  }
}
