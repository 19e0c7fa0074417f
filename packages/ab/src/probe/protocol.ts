/** What the probe and the runner say to each other. The probe's first argument is a ProbeOptions, the rest are the VMM's. */
import type { Statistic } from "@mkvm/host";

export interface ProbeOptions {
  /** Text on the guest's console that begins the measured part; undefined: the guest's first instruction. */
  start?: string | undefined;
  /** Text that ends it, and the VM. */
  end: string;
}

/** The state of a VM's process at one instant between two instructions of the guest. */
export interface Snapshot {
  /** The clock of the run: real time, or what icount makes of instructions. */
  guestNs: number;
  /** CPU time of the thread; undefined where Node.js cannot tell it. */
  cpuNs?: number;
  instructions: number;
  kernelBytes: number;
  vm: Statistic[];
  vcpus: Statistic[][];
}

/** Lines of the probe on descriptor 2 begin with this; all else there is the VMM's. */
export const reportPrefix = "mkvm-ab-probe ";

export type ProbeReport = { at: "start" | "end"; snapshot: Snapshot };
