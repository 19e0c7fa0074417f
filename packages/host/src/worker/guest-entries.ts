/** Tells when a guest of a process runs: the CPU enters it, and nothing but its instructions comes next. */
import type { KernelProcess } from "../processes/process.ts";
import type { CpuKernel } from "./cpu-kernel.ts";

export class GuestEntries {
  readonly #kernel: CpuKernel;
  readonly #waiting = new Map<KernelProcess, () => void>();

  constructor(kernel: CpuKernel) {
    this.#kernel = kernel;
  }

  /** Calls `entered` at the next entry of a guest of that process. */
  first(process: KernelProcess, entered: () => void): void {
    this.#waiting.set(process, entered);
    this.#listen();
  }

  forget(process: KernelProcess): void {
    this.#waiting.delete(process);
    this.#listen();
  }

  /** Entries are frequent: the CPU is asked to tell of them only while somebody wants to know. */
  #listen(): void {
    this.#kernel.cpu.atGuestEntry = this.#waiting.size === 0 ? undefined : this.#entry;
  }

  readonly #entry = (): void => {
    const { current } = this.#kernel;
    if (current !== undefined) this.#waiting.get(current)?.();
  };
}
