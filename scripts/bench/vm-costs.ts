/** What VMs cost beside the instructions they run: exits, idling, memory, and each other. */
import { type ExitKind, exitLatency } from "./exit-latency.ts";
import { fairness } from "./fairness.ts";
import { idleShare } from "./idle.ts";
import { vmMemory } from "./memory.ts";
import type { Part, PartContext } from "./part.ts";
import { goalBelow, type Row, type Samples } from "./row.ts";

const MODULES = ["kvm-v1", "kvm-v2"] as const;
/** Further VMs of the memory measurement. */
const FURTHER = 2;

function row(what: string, unit: string, mkvm: Samples, limit?: number): Row {
  return limit === undefined
    ? { what, unit, mkvm, peers: {} }
    : { what, unit, mkvm, peers: {}, goal: goalBelow(mkvm, limit, unit) };
}

async function exits({ rounds, progress }: PartContext): Promise<Row[]> {
  const rows: Row[] = [];
  const kinds: readonly (readonly [ExitKind, string, number])[] = [
    ["cpuid", "CPUID to the module and back", 1],
    ["out", "OUT to the VMM and back", 3],
    ["in", "IN to the VMM and back", 3],
  ];
  for (const module of MODULES) {
    for (const [kind, what, limit] of kinds) {
      progress(`${what}, ${module}`);
      const samples = await exitLatency(`@mkvm/${module}`, kind, Math.max(rounds, 9));
      const us = samples.map(({ wallNs }) => wallNs / 1000);
      rows.push(row(`${what}, ${module}`, "us", us, limit));
      const cpu = samples.map(({ cpuNs }) => cpuNs / 1000);
      rows.push(row(`${what}, ${module}: CPU time`, "us", cpu));
    }
  }
  return rows;
}

async function idle({ rounds, progress }: PartContext): Promise<Row[]> {
  const rows: Row[] = [];
  for (const module of MODULES) {
    progress(`idle Linux, ${module}`);
    const shares = await idleShare(`@mkvm/${module}`, rounds);
    const percent = shares.map((share) => share * 100);
    rows.push(row(`idle Linux guest, ${module}: of a CPU`, "%", percent, 1));
  }
  return rows;
}

async function memory({ progress, note }: PartContext): Promise<Row[]> {
  if (process.platform !== "linux") {
    note("memory of VMs: counted from /proc, which this system has not");
    return [];
  }
  progress("memory of VMs");
  const [first, ...further] = await vmMemory("@mkvm/kvm-v2", 1 + FURTHER);
  return [
    row("memory beside touched RAM, first VM", "MiB", [first], 40),
    row("memory beside touched RAM, each further VM with the same kernel", "MiB", further, 15),
  ];
}

async function sharing({ progress }: PartContext): Promise<Row[]> {
  const rows: Row[] = [];
  for (const clock of ["icount", "wall"] as const) {
    progress(`50 VMs on 2 CPUs, ${clock}`);
    const { gapsMs, shares } = await fairness("@mkvm/kvm-v2", clock);
    const what = `50 busy VMs on 2 logical CPUs, ${clock} clock`;
    rows.push(row(`${what}: longest time that one did not run`, "ms", [Math.max(...gapsMs)], 100));
    const smallest = Math.min(...shares) * 100;
    rows.push(row(`${what}: smallest share, of the mean`, "%", [smallest]));
  }
  return rows;
}

export const vmCostParts: readonly Part[] = [
  { name: "exits", about: "VM exits to the module and to the VMM, and back", measure: exits },
  { name: "idle", about: "CPU time of an idle Linux guest", measure: idle },
  { name: "memory", about: "resident memory of the first and of further VMs", measure: memory },
  { name: "sharing", about: "how 50 busy VMs share 2 logical CPUs", measure: sharing },
];
