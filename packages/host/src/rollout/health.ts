/** Whether a VM is as well after its move as it was before, from what its modules count. */
import type { VmStatistics } from "../control/types.ts";
import type { RolloutHealth } from "./plan.ts";

/** Totals over the VMs and vCPUs of a process. */
export interface Counts {
  exits: number;
  instructions: number;
  /** Log-histogram in nanoseconds; empty where the module takes none. */
  interruptLatency: number[];
}

export interface Rates {
  exitsPerS: number;
  instructionsPerS: number;
  /** 99th percentile, upper bound of its bucket, nanoseconds; undefined when none was taken. */
  interruptLatencyNs?: number;
}

/** Below this many exits per second a multiple says nothing: an idle guest has a few, and then a few more. */
const fewExitsPerS = 200;

export function countsOf(vms: readonly VmStatistics[]): Counts {
  const counts: Counts = { exits: 0, instructions: 0, interruptLatency: [] };
  for (const statistic of vms.flatMap((vm) => vm.vcpus).flatMap((vcpu) => vcpu.statistics)) {
    if ("value" in statistic && statistic.name === "exits") counts.exits += statistic.value;
    if ("value" in statistic && statistic.name === "guest_instructions") counts.instructions += statistic.value;
    if ("buckets" in statistic && statistic.name === "interrupt_latency") {
      statistic.buckets.forEach((events, bucket) => {
        counts.interruptLatency[bucket] = (counts.interruptLatency[bucket] ?? 0) + events;
      });
    }
  }
  return counts;
}

export function ratesBetween(from: Counts, to: Counts, elapsedMs: number): Rates {
  const seconds = Math.max(elapsedMs, 1) / 1000;
  const rates: Rates = {
    exitsPerS: (to.exits - from.exits) / seconds,
    instructionsPerS: (to.instructions - from.instructions) / seconds,
  };
  const latency = percentileOf(
    to.interruptLatency.map((events, bucket) => events - (from.interruptLatency[bucket] ?? 0)),
    0.99,
  );
  if (latency !== undefined) rates.interruptLatencyNs = latency;
  return rates;
}

/** Upper bound of the bucket in which the percentile lies. */
function percentileOf(buckets: readonly number[], share: number): number | undefined {
  const all = buckets.reduce((sum, events) => sum + events, 0);
  if (all === 0) return undefined;
  let seen = 0;
  for (const [bucket, events] of buckets.entries()) {
    seen += events;
    if (seen >= all * share) return 2 ** bucket;
  }
  return undefined;
}

/** A sentence for each thing that is worse than the plan allows. */
export function compareRates(before: Rates, after: Rates, limits: RolloutHealth): string[] {
  const findings: string[] = [];
  const { exitsPerS, instructionsPerS, interruptLatencyNs } = after;
  if (exitsPerS > Math.max(before.exitsPerS * limits.exits, fewExitsPerS)) {
    findings.push(
      `${rounded(exitsPerS)} exits per second, ${rounded(before.exitsPerS)} before: more than ${limits.exits} times`,
    );
  }
  if (before.instructionsPerS > 0 && instructionsPerS < before.instructionsPerS * limits.progress) {
    findings.push(
      `${rounded(instructionsPerS)} guest instructions per second, ${rounded(before.instructionsPerS)} before: less than ${limits.progress} times`,
    );
  }
  const was = before.interruptLatencyNs;
  if (was !== undefined && interruptLatencyNs !== undefined && interruptLatencyNs > was * limits.interruptLatency) {
    findings.push(
      `interrupt latency of ${interruptLatencyNs} ns (99th percentile), ${was} ns before: more than ${limits.interruptLatency} times`,
    );
  }
  return findings;
}

function rounded(value: number): string {
  return value >= 10 ? String(Math.round(value)) : value.toFixed(1);
}
