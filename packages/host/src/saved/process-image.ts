/** A process that stands still, as plain data: all that another CPU, or another host, needs to go on with it, but for its memory. */
import type { CpuModelName } from "@mkvm/hw-x86";
import type { FileRole, Section } from "@mkvm/kvm-abi";
import type { SavedTurn } from "../processes/resumption.ts";
import type { UndeliveredResult } from "../processes/task.ts";

/** An open descriptor of a module. */
export interface SavedFile {
  readonly fd: number;
  readonly name: string;
  readonly role: Exclude<FileRole, { kind: "other" }>;
}

/** An eventfd, with its descriptors: none where only modules refer to it. */
export interface SavedEventfd {
  readonly id: number;
  /** A 64-bit number, decimal. */
  readonly count: string;
  readonly isSemaphore: boolean;
  readonly descriptors: readonly { readonly fd: number; readonly isNonblocking: boolean }[];
}

/** One VM: its portable state, and the files behind which it lies. */
export interface SavedVm {
  readonly sections: readonly Section[];
  readonly files: readonly SavedFile[];
}

/** What the sections' absolute times are to be read by. */
export interface SavedClock {
  readonly tsc: number;
  readonly monotonicNs: number;
}

export interface ProcessImage {
  readonly name: string;
  readonly args: readonly string[];
  /** Module that the VMs were on. */
  readonly module: string;
  readonly machine: { readonly vendor: "intel" | "amd"; readonly cpuModel: CpuModelName; readonly tscKhz: number };
  readonly clock: SavedClock;
  /** Instructions since the process started. */
  readonly retired: number;
  readonly bankBytes: number;
  readonly memory: readonly { readonly address: number; readonly lengthBytes: number }[];
  /** Of the program itself. */
  readonly program: readonly Section[];
  /** Descriptors of /dev/kvm, by the path that was opened. */
  readonly systemFiles: readonly { readonly fd: number; readonly path: string }[];
  readonly vms: readonly SavedVm[];
  readonly eventfds: readonly SavedEventfd[];
  /** Contents of the pages that vCPUs share with the program, by VM and vCPU. */
  readonly runPages: readonly { readonly vm: number; readonly vcpu: number; readonly bytes: Uint8Array }[];
  readonly undelivered: readonly UndeliveredResult[];
  /** Whose turn it was, and in which order the others waited for theirs. */
  readonly turns: readonly SavedTurn[];
  readonly input: { readonly bytes: Uint8Array; readonly ended: boolean };
}
