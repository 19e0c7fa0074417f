/** The machine's logical CPUs as the control plane has them: a thread each, and the processes that are on it. */
import { Worker } from "node:worker_threads";
import { HostError, messageOf } from "../errors.ts";
import { leastUsed, offlineText, type PoweredCpu } from "./machine-power.ts";
import type { CpuBoot, CpuEvent } from "./protocol.ts";
import { CpuClient } from "./requests.ts";

export interface Cpu extends PoweredCpu {
  worker: Worker;
  client: CpuClient;
  processes: Set<number>;
  /** Its thread ended. What else runs on the host goes on without it. */
  gone: HostError | undefined;
}

export interface CpuEvents {
  onEvent(cpu: Cpu, event: CpuEvent): void;
  /** Its thread ended, once; `cpu.processes` went with it. */
  onGone(cpu: Cpu, error: HostError): void;
}

/**
 * Most of what a CPU's thread allocates dies at once, and V8 would let it fill 64 MiB between collections: half of what a VM costs.
 * A third of that collects as seldom as matters, and less would promote garbage that only a full collection finds.
 */
const youngGenerationMb = 24;

export class CpuSet {
  readonly all: Cpu[] = [];
  readonly #events: CpuEvents;

  constructor(events: CpuEvents) {
    this.#events = events;
  }

  /** Starts the thread of a CPU; resolves when it serves requests. */
  start(id: number, boot: Omit<CpuBoot, "cpu">, entry: URL): Promise<void> {
    return new Promise((resolve, reject) => {
      const worker = new Worker(entry, {
        workerData: { cpu: id, ...boot } satisfies CpuBoot,
        transferList: [boot.regions.port],
        name: `cpu${id}`,
        resourceLimits: { maxYoungGenerationSizeMb: youngGenerationMb },
      });
      const cpu: Cpu = {
        id,
        worker,
        processes: new Set(),
        client: undefined as unknown as CpuClient,
        gone: undefined,
        offline: false,
      };
      cpu.client = new CpuClient(worker, (event) => {
        if (event.event === "ready") resolve();
        else this.#events.onEvent(cpu, event);
      });
      this.all[id] = cpu;
      const gone = (why: string) => {
        const error = new HostError("EIO", `cpu${id} stopped: ${why}`);
        if (cpu.gone) return;
        cpu.gone = error;
        // What it said last comes in the same turn, and those who asked are to hear it first
        setImmediate(() => {
          cpu.client.fail(error);
          reject(error);
          this.#events.onGone(cpu, error);
        });
      };
      worker.on("error", (error) => gone(messageOf(error)));
      worker.on("exit", (status) => gone(`its thread ended with status ${status}`));
    });
  }

  /** The one that is asked for, or the one with the fewest processes. @throws HostError when it cannot be had */
  choose(wanted: number | undefined): Cpu {
    if (wanted !== undefined) {
      const cpu = this.get(wanted);
      if (cpu.gone) throw cpu.gone;
      if (cpu.offline) throw new HostError("EAGAIN", offlineText(cpu));
      return cpu;
    }
    return leastUsed(this.alive().filter(({ offline }) => !offline));
  }

  /** @throws HostError when there is none of that number */
  get(id: number): Cpu {
    const cpu = this.all[id];
    if (!cpu) throw new HostError("EINVAL", `no cpu ${id}: this host has 0 to ${this.all.length - 1}`);
    return cpu;
  }

  /** Where a process is. @throws HostError when there is no such process */
  of(pid: number): Cpu {
    const cpu = this.all.find((candidate) => candidate.processes.has(pid));
    if (!cpu) throw new HostError("ESRCH", `no process ${pid}: see 'mkvm ps'`);
    return cpu;
  }

  /** CPUs whose threads run. @throws HostError when there is none left */
  alive(): Cpu[] {
    const alive = this.all.filter((cpu) => !cpu.gone);
    if (alive.length === 0) throw this.all[0]?.gone ?? new HostError("EIO", "the host has no CPU");
    return alive;
  }

  /** Asks every CPU that is there; one that goes away meanwhile is no answer. */
  async onAll<Result>(ask: (cpu: Cpu) => Promise<Result>): Promise<Result[]> {
    const answers = await Promise.all(
      this.alive().map(async (cpu) => {
        try {
          return [await ask(cpu)];
        } catch (thrown) {
          if (cpu.gone) return [];
          throw thrown;
        }
      }),
    );
    return answers.flat(1) as Result[];
  }

  async terminate(): Promise<void> {
    await Promise.all(this.all.map((cpu) => cpu.worker.terminate()));
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
}
