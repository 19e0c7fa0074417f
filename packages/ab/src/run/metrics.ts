/** From two snapshots of a VM to named numbers. */
import type { MoveReport, Statistic } from "@mkvm/host";
import type { Snapshot } from "../probe/protocol.ts";

export type Unit = "ns" | "bytes" | "cycles" | "count";
/** Of VMs that move: not there in warm-up runs, which do not. */
export const moveMetrics = ["blackout", "blackout_longest"] as const;

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

/** Counters, and numbers of histograms, since `start`; what is instant or a peak as it is at `end`. */
export function statisticsBetween(start: readonly Statistic[], end: readonly Statistic[]): Metrics {
  const found: Metrics = {};
  const before = new Map(start.map((statistic) => [statistic.name, statistic]));
  for (const after of end) {
    const { name } = after;
    const earlier = before.get(name);
    const unit = unitOf(after);
    const scale = after.base ** after.exponent * (after.unit === "seconds" ? 1e9 : 1);
    if ("buckets" in after) {
      const since = earlier && "buckets" in earlier ? earlier.buckets : [];
      const counts = after.buckets.map((count, index) => count - (since[index] ?? 0));
      const total = counts.reduce((sum, count) => sum + count, 0);
      found[`${name}.count`] = { value: total, unit: "count" };
      if (total === 0) continue;
      for (const part of quantiles) {
        found[`${name}.p${part * 100}`] = { value: histogramQuantile(after, counts, part) * scale, unit };
      }
    } else if (after.unit !== "boolean") {
      const since = after.kind === "cumulative" && earlier && "value" in earlier ? earlier.value : 0;
      found[name] = { value: (after.value - since) * scale, unit };
    }
  }
  return found;
}

function unitOf({ unit }: Statistic): Unit {
  return unit === "seconds" ? "ns" : unit === "bytes" || unit === "cycles" ? unit : "count";
}

/** Linear inside of a bucket; the last bucket is open, and counts as its lower end. */
export function histogramQuantile(
  histogram: { kind: "linear-histogram" | "log-histogram"; bucketSize: number },
  counts: readonly number[],
  part: number,
): number {
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

/** Statistics of all vCPUs of a VM, as those of one: sums, and the highest peak. */
export function sumOf(vcpus: readonly (readonly Statistic[])[]): Statistic[] {
  const sums = new Map<string, Statistic>();
  for (const statistic of vcpus.flat()) {
    const sum = sums.get(statistic.name);
    if (!sum) sums.set(statistic.name, structuredClone(statistic));
    else if ("buckets" in sum && "buckets" in statistic) {
      sum.buckets = sum.buckets.map((count, index) => count + (statistic.buckets[index] ?? 0));
    } else if ("value" in sum && "value" in statistic) {
      sum.value = sum.kind === "peak" ? Math.max(sum.value, statistic.value) : sum.value + statistic.value;
    }
  }
  return [...sums.values()];
}
