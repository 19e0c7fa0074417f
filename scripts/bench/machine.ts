/** The machine that the figures are of. */
import { cpus, loadavg, release, totalmem, type } from "node:os";
import { qemuVersion } from "./qemu.ts";
import { v86Version } from "./v86.ts";

export interface MachineFacts {
  cpus: number;
  cpuModel: string;
  memoryGib: number;
  kernel: string;
  node: string;
  qemu: string | undefined;
  v86: string | undefined;
  /** Average number of runnable processes in the minute before the run: above 0, others were at work. */
  loadBefore: number;
}

export function machineFacts(): MachineFacts {
  return {
    cpus: cpus().length,
    cpuModel: cpus()[0]?.model.trim() ?? "unknown",
    memoryGib: Math.round(totalmem() / 2 ** 30),
    kernel: `${type()} ${release()}`,
    node: process.version,
    qemu: qemuVersion(),
    v86: v86Version(),
    loadBefore: Math.round((loadavg()[0] ?? 0) * 100) / 100,
  };
}

export function describeMachine(facts: MachineFacts): string {
  const peers = [facts.qemu, facts.v86].filter(Boolean).join("; ") || "none installed";
  return `${facts.cpus} x ${facts.cpuModel}, ${facts.memoryGib} GiB, ${facts.kernel}, Node ${facts.node}, load before the run ${facts.loadBefore}; peers: ${peers}`;
}
