/** A host with both arms loaded, as /dev/kvma and /dev/kvmb, on which runs are made. */
import { fileURLToPath } from "node:url";
import { createHost, type Host, type LoadedModule } from "@mkvm/host";
import { AbError, ExitStatus, messageOf } from "../errors.ts";
import { type ArmId, armIds, type Plan } from "../plan/schema.ts";
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
  readonly #host: Host;
  readonly #plan: Plan;
  readonly #guests: Readonly<Record<ArmId, Guest>>;
  readonly #directory: string;

  /** @throws AbError when a file is missing or an arm cannot be loaded; nothing is left behind then */
  static async create(plan: Plan, directory: string): Promise<Bench> {
    const { a, b } = plan.arms;
    const guests = { a: guestOf(plan.workload, a, directory), b: guestOf(plan.workload, b, directory) };
    const host = await createHost({ cpus: plan.schedule === "concurrent" ? 2 : 1, clock: plan.clock, directory });
    try {
      const modules: Partial<Record<ArmId, LoadedModule>> = {};
      for (const id of armIds) modules[id] = await loadArm(host, id, plan, directory);
      return new Bench(host, plan, guests, modules as Record<ArmId, LoadedModule>, directory);
    } catch (thrown) {
      await host.close();
      throw thrown;
    }
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
  }

  /**
   * One VM of an arm from its start to the end marker. `moveAt`: instructions since its start at which it goes to the other
   * arm and back in turn.
   * @throws RunFailure when it does not get there; the abort reason when `signal` aborts
   */
  async run(arm: ArmId, cpu: number, signal: AbortSignal, moveAt: readonly number[] = []): Promise<Measured> {
    signal.throwIfAborted();
    const guest = this.#guests[arm];
    const other = arm === "a" ? "b" : "a";
    const vm = await this.#host.run({
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
    const kill = () => this.#host.kill(vm.pid).catch(() => {});
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

  close(): Promise<void> {
    return this.#host.close();
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
