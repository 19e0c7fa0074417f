/** From two snapshots of a VM to named numbers. */
import type { MoveReport } from "@mkvm/host";
import type { Snapshot, Statistic, Statistics } from "../probe/protocol.ts";

export type Unit = "ns" | "bytes" | "cycles" | "count";
export interface Metric {
  value: number;
  unit: Unit;
}
export type Metrics = Record<string, Metric>;

/** Of histograms, as `NAME.p50`. */
const quantiles = [0.5, 0.99];

/** What happened between the two; the names of statistics are those of the module, as Linux has them where it has them. */
export function metricsBetween(start: Snapshot, end: Snapshot, moves: readonly MoveReport[] = []): Metrics {
  const found: Metrics = {
    time: { value: end.guestNs - start.guestNs, unit: "ns" },
    instructions: { value: end.instructions - start.instructions, unit: "count" },
    kernel_memory: { value: end.kernelBytes, unit: "bytes" },
  };
  if (start.cpuNs !== undefined && end.cpuNs !== undefined) found.cpu_time = { value: end.cpuNs - start.cpuNs, unit: "ns" };
  Object.assign(found, statisticsBetween(start.vm, end.vm), statisticsBetween(sumOf(start.vcpus), sumOf(end.vcpus)));
  if (moves.length > 0) {
    const blackouts = moves.map((move) => move.blackoutUs * 1000);
    found.blackout = { value: blackouts.reduce((sum, ns) => sum + ns, 0) / blackouts.length, unit: "ns" };
    found.blackout_longest = { value: Math.max(...blackouts), unit: "ns" };
  }
  return found;
}

function statisticsBetween(start: Statistics, end: Statistics): Metrics {
  const found: Metrics = {};
  for (const [name, after] of Object.entries(end)) {
    const unit = unitOf(after);
    const before = start[name];
    const grown = (index: number) => after.values[index]! - (before?.values[index] ?? 0);
    const scale = after.unit === "seconds" ? after.scale * 1e9 : after.scale;
    if (after.kind === "linear-histogram" || after.kind === "log-histogram") {
      const counts = after.values.map((_, index) => grown(index));
      const total = counts.reduce((sum, count) => sum + count, 0);
      found[`${name}.count`] = { value: total, unit: "count" };
      if (total === 0) continue;
      for (const part of quantiles) {
        found[`${name}.p${part * 100}`] = { value: histogramQuantile(after, counts, part) * scale, unit };
      }
    } else if (after.unit !== "boolean") {
      found[name] = { value: (after.kind === "cumulative" ? grown(0) : after.values[0]!) * scale, unit };
    }
  }
  return found;
}

function unitOf({ unit }: Statistic): Unit {
  return unit === "seconds" ? "ns" : unit === "bytes" || unit === "cycles" ? unit : "count";
}

/** Linear inside of a bucket; the last bucket is open, and counts as its lower end. */
export function histogramQuantile(histogram: Statistic, counts: readonly number[], part: number): number {
  // Bucket 0 of a logarithmic one counts zeros, bucket n what is from 2 ** (n - 1) up to 2 ** n.
  const isLinear = histogram.kind === "linear-histogram";
  const lower = (index: number) => (isLinear ? index * histogram.bucketSize : index === 0 ? 0 : 2 ** (index - 1));
  const upper = (index: number) => (isLinear || index > 0 ? lower(index + 1) : 0);
  const wanted = part * counts.reduce((sum, count) => sum + count, 0);
  let below = 0;
  for (const [index, count] of counts.entries()) {
    if (count > 0 && below + count >= wanted) {
      if (index === counts.length - 1) return lower(index);
      return lower(index) + ((wanted - below) / count) * (upper(index) - lower(index));
    }
    below += count;
  }
  return 0;
}

/** Statistics of all vCPUs of a VM, as those of one. */
function sumOf(vcpus: readonly Statistics[]): Statistics {
  const sums: Statistics = {};
  for (const vcpu of vcpus) {
    for (const [name, statistic] of Object.entries(vcpu)) {
      const sum = sums[name];
      if (!sum) sums[name] = { ...statistic, values: [...statistic.values] };
      else if (statistic.kind === "peak")
        sum.values = sum.values.map((value, index) => Math.max(value, statistic.values[index] ?? 0));
      else sum.values = sum.values.map((value, index) => value + (statistic.values[index] ?? 0));
    }
  }
  return sums;
}
