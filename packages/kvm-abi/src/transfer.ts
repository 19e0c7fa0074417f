/**
 * The move of a running VM from one module to another. The kernel drives it:
 *
 *   old.describe -> new.prepare (VM runs) -> freeze (kernel: tasks out of the module) -> old.save -> incoming.restore
 *   -> incoming.save, bytes compared -> incoming.commit, files switched -> old.release -> thaw
 *
 * Anything that fails before commit ends with incoming.abort and the VM on its old module. Between freeze and thaw everything
 * is synchronous. Guest RAM is never copied. All numbers in section bytes are little-endian; layouts are in sections.ts.
 */
import type { File, FileOperations, Process } from "./module-contract.ts";

/** A piece of VM state in canonical encoding: equal state gives equal bytes, whichever version wrote it. */
export interface Section {
  /** "vm.memory-slots", "vcpu.registers", ... one of the names in sections.ts. */
  readonly name: string;
  /** Which vCPU or device, 0 where there is one. */
  readonly instance: number;
  readonly version: number;
  /** A receiver that does not know a required section refuses. */
  readonly required: boolean;
  readonly bytes: Uint8Array;
}

/** What a receiver can take. */
export interface SectionSupport {
  readonly name: string;
  readonly minVersion: number;
  readonly maxVersion: number;
}

/** What a VM will send, without its bytes: what `prepare` checks. */
export interface VmDescription {
  readonly sections: readonly { name: string; instance: number; version: number; required: boolean }[];
  /**
   * Current bytes of "vm.memory-slots" and "vm.shape": enough to allocate and build second-level tables ahead. Those of
   * "vcpu.run-page" as well, where they are known: enough to make the vCPUs ahead. Others that are long and seldom change may be
   * among them, to be taken in ahead; all come again when the VM stands still, as they are then.
   */
  readonly early: readonly Section[];
}

/** What an open file is to its module. */
export type FileRole =
  | { kind: "system" }
  | { kind: "vm" }
  | { kind: "vcpu"; id: number }
  /** Of KVM_GET_STATS_FD, on a VM or on a vCPU. */
  | { kind: "vm-statistics" }
  | { kind: "vcpu-statistics"; id: number }
  | { kind: "other" };

export interface Transfer {
  readonly receives: readonly SectionSupport[];
  roleOf(file: File): FileRole;
  /** Files of the VM behind a "vm" file: itself, its vCPUs' and those of their statistics (only files that are open). */
  filesOf(vm: File): readonly File[];
  /** Section versions limited to what `receives` of the other side takes. */
  describe(vm: File, receiver: readonly SectionSupport[]): VmDescription;
  /** All sections; no side effect on the VM. The VM is frozen. */
  save(vm: File, receiver: readonly SectionSupport[]): Section[];
  /**
   * Lets go of a VM that moved away, without touching its memory or its kvm_run pages. Its files are no longer this module's. Once it
   * returns nothing of the VM happens here any more. What is only to be freed may be left to the function that it answers with, which
   * the host calls once, when the VM runs on the other module.
   */
  releaseMoved(vm: File): (() => void) | undefined;
  /** Allocates all that the VM will need and starts to build its tables, giving way with `kernel.scheduler`. A string explains
   *  a refusal in words an operator understands; nothing is left behind then. */
  prepare(process: Process, vm: VmDescription): Promise<IncomingVm | string>;
}

export interface IncomingVm {
  /** Undefined: restored. A string: why not. */
  restore(sections: readonly Section[]): string | undefined;
  /** What the new side would send now, in the same order and versions as `restore` got. */
  save(): Section[];
  /** What to put behind each file. Cannot fail. */
  commit(role: FileRole): { operations: FileOperations; privateData: unknown };
  /** Frees everything. */
  abort(): void;
}
