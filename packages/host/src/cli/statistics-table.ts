/** Statistics as a table: a row a statistic, a column for the VM and for each vCPU. */
import type { Statistic, VmStatistics } from "../control/types.ts";
import { table } from "./tables.ts";

type Columns = readonly { title: string; statistics: ReadonlyMap<string, Statistic> }[];

const columnsOf = (vm: VmStatistics): Columns =>
  [
    { title: "VM", statistics: vm.statistics },
    ...vm.vcpus.map(({ id, statistics }) => ({ title: `VCPU ${id}`, statistics })),
  ].map(({ title, statistics }) => ({ title, statistics: new Map(statistics.map((each) => [each.name, each])) }));

/**
 * One table a VM. What is 0 everywhere is left out unless `all`; with `before`, an earlier look at the same VMs, each number
 * comes with what it has grown by since.
 */
export function statisticsTables(
  vms: readonly VmStatistics[],
  options: { all?: boolean; before?: readonly VmStatistics[] } = {},
): string {
  return vms
    .map((vm) => {
      const columns = columnsOf(vm);
      const earlier = options.before?.find((each) => each.pid === vm.pid && each.fd === vm.fd);
      const before = new Map(earlier && columnsOf(earlier).map(({ title, statistics }) => [title, statistics]));
      const names = [...new Set(columns.flatMap(({ statistics }) => [...statistics.keys()]))];
      const rows = names
        .filter((name) => options.all || columns.some(({ statistics }) => eventsOf(statistics.get(name)) !== 0))
        .map((name) => [
          name,
          ...columns.map(({ title, statistics }) => cell(statistics.get(name), before.get(title)?.get(name))),
        ]);
      const head = `process ${vm.pid} (${vm.process}), VM ${vm.id} on ${vm.module}`;
      return `${head}\n${table(["STATISTIC", ...columns.map(({ title }) => title)], rows)}`;
    })
    .join("\n\n");
}

function eventsOf(statistic: Statistic | undefined): number {
  if (statistic === undefined) return 0;
  return "buckets" in statistic ? statistic.buckets.reduce((sum, each) => sum + each, 0) : statistic.value;
}

function cell(statistic: Statistic | undefined, before: Statistic | undefined): string {
  if (statistic === undefined) return "-";
  const grown = before === undefined ? 0 : eventsOf(statistic) - eventsOf(before);
  const sign = grown > 0 ? "+" : "";
  const change = grown === 0 ? "" : ` ${sign}${"buckets" in statistic ? grown : quantity(grown, statistic)}`;
  return ("buckets" in statistic ? histogramText(statistic) : quantity(statistic.value, statistic)) + change;
}

/** "812, half below 1.02 us, 99 % below 16.4 us". */
function histogramText(statistic: Statistic & { buckets: number[]; bucketSize: number }): string {
  const events = eventsOf(statistic);
  if (events === 0) return "0";
  const bound = (share: number): string => {
    let seen = 0;
    const index = statistic.buckets.findIndex((count) => {
      seen += count;
      return seen >= events * share;
    });
    if (index === statistic.buckets.length - 1) return "in the last bucket";
    const end = statistic.kind === "log-histogram" ? 2 ** index : (index + 1) * statistic.bucketSize;
    return `below ${quantity(end, statistic)}`;
  };
  return `${events}, half ${bound(0.5)}, 99 % ${bound(0.99)}`;
}

function quantity(value: number, { unit, base, exponent }: Statistic): string {
  const scaled = value * base ** exponent;
  switch (unit) {
    case "seconds":
      return timeText(scaled);
    case "boolean":
      return value === 0 ? "no" : "yes";
    case "none":
      return String(scaled);
    default:
      return `${scaled} ${unit}`;
  }
}

function timeText(seconds: number): string {
  const size = Math.abs(seconds);
  if (size === 0) return "0 s";
  const [factor, unit] = size < 1e-6 ? [1e9, "ns"] : size < 1e-3 ? [1e6, "us"] : size < 1 ? [1e3, "ms"] : [1, "s"];
  return `${Number((seconds * factor).toPrecision(3))} ${unit}`;
}
