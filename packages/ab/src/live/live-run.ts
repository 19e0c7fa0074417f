/** Live A/B: half of the running VMs of a daemon move to another module, and both halves are watched for a while. */
import type { LoadedModule, ProcessInfo, VmStatistics } from "@mkvm/host";
import { AbError, ExitStatus, messageOf } from "../errors.ts";
import type { ArmId } from "../plan/schema.ts";
import type { Unit } from "../run/metrics.ts";
import { type Metrics, statisticsBetween, sumOf } from "../run/metrics.ts";
import { createRandom, shuffled } from "../run/random.ts";
import type { Daemon } from "./daemon.ts";

export interface LiveOptions {
  /** Modules by their names as loaded: where the VMs are, and where half of them goes. */
  from: string;
  to: string;
  /** Of processes: those whose name this is; default all. */
  name?: string;
  seconds: number;
  seed: number;
  /** Leaves the moved half where it is. */
  keep: boolean;
  signal: AbortSignal;
}

export interface LiveRates {
  arm: ArmId;
  pid: number;
  metrics: Record<string, { value: number; unit: Unit | `${Unit}/s` }>;
}

export interface LiveRun {
  modules: Record<ArmId, LoadedModule>;
  rates: LiveRates[];
  /** Processes that ended while they were watched. */
  ended: number[];
  /** A VM that did not move, or not back. */
  failure?: { arm: ArmId; round: number; reason: string };
  interrupted: boolean;
}

/** @throws AbError when there is nothing to compare; nothing has moved then */
export async function runLive(daemon: Daemon, options: LiveOptions): Promise<LiveRun> {
  const modules = await loadedModules(daemon, options);
  const candidates = (await daemon.call("ps")).filter((process) => isCandidate(process, options));
  if (candidates.length < 2) {
    const which = options.name === undefined ? "" : ` called ${options.name}`;
    throw new AbError(
      ExitStatus.usage,
      `${candidates.length} VM${candidates.length === 1 ? "" : "s"}${which} on ${options.from}: two halves need at least 2; see 'mkvm ps'`,
    );
  }
  const order = shuffled(candidates, createRandom(options.seed));
  const moving = order.slice(0, Math.floor(order.length / 2)).map(({ pid }) => pid);
  const staying = order.slice(moving.length).map(({ pid }) => pid);
  const run: LiveRun = { modules, rates: [], ended: [], interrupted: false };
  const moved: { pid: number; blackoutUs: number }[] = [];
  try {
    for (const pid of moving) {
      if (options.signal.aborted) break;
      const [report] = await daemon.call("upgrade", { pid, to: options.to });
      if (report?.moved) moved.push({ pid, blackoutUs: report.blackoutUs });
      else {
        const why = report?.failed ? `${report.failed.step}: ${report.failed.reason}` : "it has ended";
        run.failure = { arm: "b", round: pid, reason: `process ${pid} did not move to ${options.to}: ${why}` };
        break;
      }
    }
    if (!run.failure) await watch(daemon, options, { a: staying, b: moving }, moved, run);
  } finally {
    if (!options.keep || run.failure || options.signal.aborted) await moveBack(daemon, moved, run);
  }
  run.interrupted = options.signal.aborted;
  return run;
}

async function loadedModules(daemon: Daemon, { from, to }: LiveOptions): Promise<Record<ArmId, LoadedModule>> {
  const loaded = await daemon.call("lsmod");
  const find = (name: string) => {
    const module = loaded.find((candidate) => candidate.name === name);
    if (module) return module;
    const names = loaded.map((candidate) => candidate.name).join(", ");
    throw new AbError(
      ExitStatus.unavailable,
      `no module ${name} is loaded: ${names ? `there is ${names}` : "load one with 'mkvm insmod'"}`,
    );
  };
  if (from === to) throw new AbError(ExitStatus.usage, `--from and --to are both ${from}: nothing would differ`);
  return { a: find(from), b: find(to) };
}

function isCandidate(process: ProcessInfo, { from, name }: LiveOptions): boolean {
  const here = process.vms > 0 && process.modules.length === 1 && process.modules[0] === from;
  return here && process.state !== "ending" && (name === undefined || process.name === name);
}

interface Reading {
  atNs: number;
  vms: VmStatistics[];
}

async function watch(
  daemon: Daemon,
  options: LiveOptions,
  halves: Record<ArmId, number[]>,
  moved: readonly { pid: number; blackoutUs: number }[],
  run: LiveRun,
): Promise<void> {
  const pids = [...halves.a, ...halves.b];
  const before = await readAll(daemon, pids);
  await waitFor(options.seconds * 1000, options.signal);
  const after = await readAll(daemon, pids);
  for (const arm of ["a", "b"] as const) {
    for (const pid of halves[arm]) {
      const [start, end] = [before.get(pid), after.get(pid)];
      if (!start || !end) {
        run.ended.push(pid);
        continue;
      }
      const metrics = ratesBetween(start, end);
      const blackoutUs = moved.find((move) => move.pid === pid)?.blackoutUs;
      if (blackoutUs !== undefined) metrics.blackout = { value: blackoutUs * 1000, unit: "ns" };
      run.rates.push({ arm, pid, metrics });
    }
  }
}

/** VMs that are gone are not in the result. */
async function readAll(daemon: Daemon, pids: readonly number[]): Promise<Map<number, Reading>> {
  const running = new Set((await daemon.call("ps")).map(({ pid }) => pid));
  const readings = new Map<number, Reading>();
  for (const pid of pids) {
    if (!running.has(pid)) continue;
    const vms = await daemon.call("statistics", pid);
    if (vms.length > 0) readings.set(pid, { atNs: performance.now() * 1e6, vms });
  }
  return readings;
}

/** Of counters, per second; of what is instant or a quantile, as it is. */
function ratesBetween(start: Reading, end: Reading): LiveRates["metrics"] {
  const seconds = (end.atNs - start.atNs) / 1e9;
  const all = (reading: Reading) =>
    sumOf(reading.vms.flatMap((vm) => [vm.statistics, ...vm.vcpus.map((vcpu) => vcpu.statistics)]));
  const counters = new Set(all(end).flatMap((statistic) => (statistic.kind === "cumulative" ? [statistic.name] : [])));
  const metrics: Metrics = statisticsBetween(all(start), all(end));
  return Object.fromEntries(
    Object.entries(metrics).map(([name, { value, unit }]) =>
      counters.has(name) || name.endsWith(".count")
        ? [name, { value: value / seconds, unit: `${unit}/s` as const }]
        : [name, { value, unit }],
    ),
  );
}

async function moveBack(daemon: Daemon, moved: readonly { pid: number }[], run: LiveRun): Promise<void> {
  for (const { pid } of moved) {
    try {
      const { moved: back, failed } = await daemon.call("rollback", pid);
      if (!back)
        run.failure ??= {
          arm: "b",
          round: pid,
          reason: `process ${pid} did not move back: ${failed?.step}: ${failed?.reason}`,
        };
    } catch (thrown) {
      const running = (await daemon.call("ps")).some((process) => process.pid === pid);
      if (running) run.failure ??= { arm: "b", round: pid, reason: `process ${pid} did not move back: ${messageOf(thrown)}` };
    }
  }
}

function waitFor(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(done, ms);
    function done(): void {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done);
  });
}
