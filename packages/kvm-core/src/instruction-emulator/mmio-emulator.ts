import type { Section } from "@mkvm/kvm-abi";
import type { EmulatedCpu, Emulation } from "./emulated-cpu.ts";

/**
 * Emulates the instruction at RIP that touched MMIO. Restartable: an instruction whose read must go to user space changes nothing
 * and runs anew, with the data, at `complete`; writes are handed out after the instruction has finished, RIP moved.
 */
export interface MmioEmulator {
  emulate(cpu: EmulatedCpu): Emulation;
  /** KVM_RUN after KVM_EXIT_MMIO: `data` is what user space put in kvm_run (reads). Goes on to the next fragment, or finishes. */
  complete(cpu: EmulatedCpu, data: Uint8Array): Emulation;
  /** A fragment is at user space. */
  readonly pending: boolean;
  /** Section vcpu.pending-exit, of kind mmio, or undefined when nothing is pending. */
  save(vcpuId: number): Section | undefined;
  restore(section: Section): string | undefined;
  /** Forgets what is pending (reset, KVM_SET_REGS). */
  clear(): void;
}

export type CreateMmioEmulator = () => MmioEmulator;
