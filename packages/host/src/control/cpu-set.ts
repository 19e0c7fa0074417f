/** The machine's logical CPUs as the control plane has them: a thread each, and the processes that are on it. */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { HostError, messageOf } from "../errors.ts";
import { within } from "../patience.ts";
import { leastUsed, offlineText, type PoweredCpu } from "./machine-power.ts";
import type { CpuBoot, CpuEvent } from "./protocol.ts";
import { CpuClient, NoAnswer, progressBytes } from "./requests.ts";

export interface Cpu extends PoweredCpu {
  worker: Worker;
  client: CpuClient;
  processes: Set<number>;
  /** Its thread ended. What else runs on the host goes on without it. */
  gone: HostError | undefined;
  /** Ends its thread, whatever that does. */
  kill(): Promise<void>;
}

export interface CpuEvents {
  onEvent(cpu: Cpu, event: CpuEvent): void;
  /** Its thread ended, once; `cpu.processes` went with it. */
  onGone(cpu: Cpu, error: HostError): void;
  /** Its thread does not answer. */
  onSilent(cpu: Cpu, error: HostError): void;
  /** It answers again. */
  onBack(cpu: Cpu): void;
}

/**
 * Most of what a CPU's thread allocates dies at once, and V8 would let it fill 64 MiB between collections: half of what a VM costs.
 * A third of that collects as seldom as matters, and less would promote garbage that only a full collection finds.
 */
const youngGenerationMb = 24;

export class CpuSet {
  readonly all: Cpu[] = [];
  readonly #events: CpuEvents;
  /** How long a thread may take to answer, milliseconds. */
  readonly #answerMs: number;

  constructor(events: CpuEvents, answerMs: number) {
    this.#events = events;
    this.#answerMs = answerMs;
  }

  /** Starts the thread of a CPU; resolves when it serves requests. @throws HostError when it ends before, or is not there within the limit */
  start(id: number, boot: Omit<CpuBoot, "cpu" | "progress">, entry: URL): Promise<void> {
    // All start at once, and share the processors
    const limitMs = this.#answerMs * Math.ceil(boot.machine.cpus / availableParallelism());
    const started = new Promise<void>((resolve, reject) => {
      const progress = new SharedArrayBuffer(progressBytes);
      const worker = new Worker(entry, {
        workerData: { cpu: id, progress, ...boot } satisfies CpuBoot,
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
        kill: () => terminate([worker]),
      };
      cpu.client = new CpuClient(
        worker,
        { cpu: id, answerMs: this.#answerMs, progress },
        {
          event: (event) => {
            if (event.event === "ready") resolve();
            else this.#events.onEvent(cpu, event);
          },
          silent: (reason) => this.#events.onSilent(cpu, reason),
          back: () => this.#events.onBack(cpu),
        },
      );
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
    return within(started, limitMs, () => {
      throw new HostError("ETIMEDOUT", `cpu${id} did not start within ${limitMs} ms: give it longer, or the host fewer CPUs`);
    });
  }

  /** The one that is asked for, or the one with the fewest processes. @throws HostError when it cannot be had */
  choose(wanted: number | undefined): Cpu {
    if (wanted !== undefined) {
      const cpu = this.get(wanted);
      if (cpu.gone) throw cpu.gone;
      if (cpu.offline) throw new HostError("EAGAIN", offlineText(cpu));
      if (cpu.client.silent) throw cpu.client.silent;
      return cpu;
    }
    return leastUsed(this.answering().filter(({ offline }) => !offline));
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

  /** Those of them that are not known to hang. @throws HostError when there is none */
  answering(): Cpu[] {
    const alive = this.alive();
    const answering = alive.filter(({ client }) => !client.silent);
    if (answering.length === 0) throw alive[0]!.client.silent!;
    return answering;
  }

  /** Those that are. */
  silent(): Cpu[] {
    return this.all.filter(({ client }) => client.silent);
  }

  /** Asks every CPU that is there, or these. One that goes away meanwhile, or hangs, is no answer. */
  async onAll<Result>(ask: (cpu: Cpu) => Promise<Result>, cpus: readonly Cpu[] = this.alive()): Promise<Result[]> {
    return (await this.#answers(ask, cpus)).answers;
  }

  /** Asks every CPU that is there, of which none may hang. @throws NoAnswer that names the one that does, when the others have answered */
  async onEach<Result>(ask: (cpu: Cpu) => Promise<Result>): Promise<Result[]> {
    const { answers, silent } = await this.#answers(ask, this.alive());
    if (silent) throw silent;
    return answers;
  }

  /**
   * Before a change that all CPUs make, each by a request that is sure: nothing has changed when one of them hangs. One that hangs
   * from here on makes the change when it comes back, before anything else that it is asked.
   * @throws NoAnswer that names the one
   */
  async allAnswer(): Promise<void> {
    await this.onEach((cpu) => cpu.client.request("cpu.ping", null));
  }

  async #answers<Result>(ask: (cpu: Cpu) => Promise<Result>, cpus: readonly Cpu[]) {
    const answers: Result[] = [];
    let silent: NoAnswer | undefined;
    const each = cpus.map(async (cpu) => {
      try {
        return [await ask(cpu)];
      } catch (thrown) {
        if (cpu.gone) return [];
        if (!(thrown instanceof NoAnswer)) throw thrown;
        silent ??= thrown;
        return [];
      }
    });
    for (const answer of await Promise.all(each)) answers.push(...answer);
    return { answers, silent };
  }

  terminate(): Promise<void> {
    return terminate(this.all.map(({ worker }) => worker));
  }
}

/** Resolves when everybody knows. */
async function terminate(workers: readonly Worker[]): Promise<void> {
  await Promise.all(workers.map((worker) => worker.terminate()));
  await new Promise<void>((resolve) => setImmediate(resolve));
}
