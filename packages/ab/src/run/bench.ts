/**
 * Where runs are made: a host with both arms loaded, as /dev/kvma and /dev/kvmb. On the wall clock all runs share one, so that
 * after the warm-up none pays for a start; under icount each has a new one, so that it is a function of its inputs and of nothing
 * that ran before.
 */
import { fileURLToPath } from "node:url";
import { createHost, type Host, type LoadedModule } from "@mkvm/host";
import { AbError, ExitStatus, messageOf } from "../errors.ts";
import type { ArmId, Plan } from "../plan/schema.ts";
import { type ProbeReport, reportPrefix, type Snapshot } from "../probe/protocol.ts";
import { type Guest, guestOf } from "../workload/guest.ts";
import { scriptStatus } from "../workload/linux-script.ts";
import { type Metrics, metricsBetween } from "./metrics.ts";

/** The program that watches the VMM; a package of its own beside this one's build. */
export const probeDirectory = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "../../dist/probe" : "./probe", import.meta.url),
);

export interface Measured {
  metrics: Metrics;
  /** Instructions since the VM's start, at both ends of the measured part. */
  startInstructions: number;
  endInstructions: number;
}

/** A run that did not get to its end, for a reason in one line. */
export class RunFailure extends Error {}

export class Bench {
  readonly modules: Readonly<Record<ArmId, LoadedModule>>;
  readonly #plan: Plan;
  readonly #guests: Readonly<Record<ArmId, Guest>>;
  readonly #directory: string;
  /** Free for the next run. */
  #host: Host | undefined;
  readonly #shared: boolean;

  /** @throws AbError when a file is missing or an arm cannot be loaded; nothing is left behind then */
  static async create(plan: Plan, directory: string): Promise<Bench> {
    const { a, b } = plan.arms;
    const guests = { a: guestOf(plan.workload, a, directory), b: guestOf(plan.workload, b, directory) };
    const { host, modules } = await openHost(plan, directory);
    return new Bench(host, plan, guests, modules, directory);
  }

  private constructor(
    host: Host,
    plan: Plan,
    guests: Record<ArmId, Guest>,
    modules: Record<ArmId, LoadedModule>,
    directory: string,
  ) {
    this.#host = host;
    this.#plan = plan;
    this.#guests = guests;
    this.modules = modules;
    this.#directory = directory;
    this.#shared = plan.clock === "wall";
  }

  /** A host for one run. */
  async #take(): Promise<Host> {
    const free = this.#host;
    if (this.#shared) return free!;
    this.#host = undefined;
    return free ?? (await openHost(this.#plan, this.#directory)).host;
  }

  /**
   * One VM of an arm from its start to the end marker. `cpu`: where the host is shared. `moveAt`: instructions since its start at which it goes to the other
   * arm and back in turn.
   * @throws RunFailure when it does not get there; the abort reason when `signal` aborts
   */
  async run(arm: ArmId, cpu: number, signal: AbortSignal, moveAt: readonly number[] = []): Promise<Measured> {
    signal.throwIfAborted();
    const host = await this.#take();
    try {
      return await this.#runOn(host, arm, this.#shared ? cpu : 0, signal, moveAt);
    } finally {
      if (!this.#shared) await host.close();
    }
  }

  async #runOn(host: Host, arm: ArmId, cpu: number, signal: AbortSignal, moveAt: readonly number[]): Promise<Measured> {
    signal.throwIfAborted();
    const guest = this.#guests[arm];
    const other = arm === "a" ? "b" : "a";
    const vm = await host.run({
      program: probeDirectory,
      args: [JSON.stringify(guest.probe), ...guest.args],
      cpu,
      mounts: [{ source: `/dev/kvm${arm}`, target: "/dev/kvm" }],
      moves: moveAt.map((at, index) => ({ at, to: `kvm${index % 2 === 0 ? other : arm}` })),
      name: `ab-${arm}`,
      directory: this.#directory,
    });
    const heard = new Heard();
    vm.onOutput((bytes, fd) => fd === 2 && heard.feed(bytes));
    const kill = () => host.kill(vm.pid).catch(() => {});
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      void kill();
    }, this.#plan.timeoutS * 1000);
    signal.addEventListener("abort", kill);
    try {
      const exit = await vm.exited;
      signal.throwIfAborted();
      const { start, end } = heard;
      if (!end) {
        const missing = start ? `"${guest.probe.end}"` : `"${guest.probe.start}"`;
        const reason = late
          ? `no ${missing} on its console within ${this.#plan.timeoutS} s${lastLine(vm.console())}`
          : exit.reason === "crashed"
            ? `it crashed: ${exit.message ?? "see the log"}`
            : `it ended with status ${exit.status} before ${missing}${heard.said || lastLine(vm.console())}`;
        throw new RunFailure(reason.replace(/\s*\n\s*/g, " "));
      }
      if (guest.isScript) checkScript(vm.console());
      const failed = vm.moves.find((move) => move.failed);
      if (failed) throw new RunFailure(`it did not move to ${failed.to}: ${failed.failed!.step}: ${failed.failed!.reason}`);
      if (vm.moves.length < moveAt.length) {
        throw new RunFailure(
          `it made ${vm.moves.length} of ${moveAt.length} moves before its end: give smaller parts in "moves"`,
        );
      }
      return {
        metrics: metricsBetween(start!, end, vm.moves),
        startInstructions: start!.instructions,
        endInstructions: end.instructions,
      };
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", kill);
    }
  }

  async close(): Promise<void> {
    await this.#host?.close();
  }
}

async function openHost(plan: Plan, directory: string): Promise<{ host: Host; modules: Record<ArmId, LoadedModule> }> {
  const cpus = plan.clock === "wall" && plan.schedule === "concurrent" ? 2 : 1;
  const host = await createHost({ cpus, clock: plan.clock, directory });
  try {
    const a = await loadArm(host, "a", plan, directory);
    return { host, modules: { a, b: await loadArm(host, "b", plan, directory) } };
  } catch (thrown) {
    await host.close();
    throw thrown;
  }
}

async function loadArm(host: Host, id: ArmId, plan: Plan, directory: string): Promise<LoadedModule> {
  const { module, parameters = {} } = plan.arms[id];
  try {
    return await host.insmod(module, { id, parameters, directory });
  } catch (thrown) {
    throw new AbError(ExitStatus.unavailable, `arm ${id} (${module}) cannot be loaded: ${messageOf(thrown)}`);
  }
}

/** What comes on descriptor 2: the probe's reports, and what the VMM says. */
class Heard {
  start: Snapshot | undefined;
  end: Snapshot | undefined;
  #rest = "";
  #lines: string[] = [];
  readonly #decoder = new TextDecoder();

  get said(): string {
    return this.#lines.length ? `: ${this.#lines.join("; ")}` : "";
  }

  feed(bytes: Uint8Array): void {
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith(reportPrefix)) {
        if (line.trim()) this.#lines.push(line.trim());
        continue;
      }
      const report = JSON.parse(line.slice(reportPrefix.length)) as ProbeReport;
      this[report.at] = report.snapshot;
    }
  }
}

function lastLine(console: Uint8Array): string {
  const line = new TextDecoder().decode(console).trim().split(/\r*\n/).at(-1);
  return line ? `; its console ends with "${line.slice(-200)}"` : "; its console is empty";
}

/** @throws RunFailure when the script failed */
function checkScript(console: Uint8Array): void {
  const text = new TextDecoder().decode(console);
  const at = text.lastIndexOf(scriptStatus);
  const status = Number.parseInt(text.slice(at + scriptStatus.length), 10);
  if (status !== 0) throw new RunFailure(`its script ended with status ${status}`);
}
