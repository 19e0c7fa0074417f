/** Power of the machine's CPUs: all of them sleep and wake together, or one is emptied and taken out of use. */
import { HostError } from "../errors.ts";
import { type CpuClient, NoAnswer } from "./requests.ts";
import type { CpuInfo, MigrationReport } from "./types.ts";

export interface PoweredCpu {
  readonly id: number;
  readonly client: CpuClient;
  readonly processes: ReadonlySet<number>;
  /** Its thread ended. */
  readonly gone: HostError | undefined;
  /** Taken out of use: nothing is started on it. */
  offline: boolean;
}

export interface Surroundings {
  readonly cpus: readonly PoweredCpu[];
  migrate(options: { pid: number; cpu: number }): Promise<MigrationReport>;
  hasEnded(pid: number): boolean;
  log(message: string): void;
}

const suspendedText = "the host is suspended: wake it with 'mkvm resume' first";

export class MachinePower {
  readonly #around: Surroundings;
  #suspended = false;

  constructor(around: Surroundings) {
    this.#around = around;
  }

  async suspend(): Promise<void> {
    this.#refuseSuspended();
    const cpus = this.#inUse();
    for (const { client } of cpus) if (client.silent) throw client.silent;
    // All of them have answered before one is woken: a CPU that is about to sleep would not hear that it need not
    const answers = await Promise.allSettled(
      cpus.map(async ({ client }) => {
        await this.#suspend(client);
        client.asleep = suspendedText;
      }),
    );
    const refused = answers.find((answer, index) => answer.status === "rejected" && !cpus[index]!.gone);
    if (refused) {
      await this.#wake();
      throw (refused as PromiseRejectedResult).reason;
    }
    this.#suspended = true;
    this.#around.log("suspended");
  }

  async resume(): Promise<void> {
    if (!this.#suspended) throw new HostError("EINVAL", "the host is not suspended: nothing to resume");
    await this.#wake();
    this.#suspended = false;
    this.#around.log("resumed");
  }

  cpus(): CpuInfo[] {
    const stateOf = ({ gone, offline, client }: PoweredCpu) =>
      gone ? "gone" : client.silent ? "silent" : offline ? "offline" : this.#suspended ? "suspended" : "online";
    return this.#around.cpus.map((cpu) => ({
      cpu: cpu.id,
      state: stateOf(cpu),
      pids: [...cpu.processes].sort((a, b) => a - b),
    }));
  }

  async takeOffline(cpu: PoweredCpu): Promise<void> {
    this.#refuseSuspended();
    const others = this.#inUse().filter((other) => other !== cpu && !other.client.silent);
    if (others.length === 0) throw new HostError("EBUSY", `cpu${cpu.id} is the last one in use that answers: a host needs one`);
    cpu.offline = true;
    try {
      for (const pid of [...cpu.processes]) if (cpu.processes.has(pid)) await this.#leave(pid, leastUsed(others));
      await this.#suspend(cpu.client);
    } catch (thrown) {
      cpu.offline = false;
      throw thrown;
    }
    cpu.client.asleep = offlineText(cpu);
    this.#around.log(`cpu${cpu.id} is offline`);
  }

  async bringOnline(cpu: PoweredCpu): Promise<void> {
    this.#refuseSuspended();
    if (cpu.gone) throw cpu.gone;
    if (!cpu.offline) throw new HostError("EINVAL", `cpu${cpu.id} is online already`);
    if (cpu.client.silent) throw cpu.client.silent;
    await this.#powerOn(cpu);
    cpu.offline = false;
    this.#around.log(`cpu${cpu.id} is online`);
  }

  /** One that loses its power when nobody waits for that any more gets it back. */
  #suspend(client: CpuClient): Promise<null> {
    const late = (asleep: Promise<unknown>) => asleep.then(() => client.request("cpu.resume", null, { sure: true }));
    return client.request("cpu.suspend", null, { late });
  }

  #refuseSuspended(): void {
    if (this.#suspended) throw new HostError("EALREADY", suspendedText);
  }

  #inUse(): PoweredCpu[] {
    return this.#around.cpus.filter(({ gone, offline }) => !gone && !offline);
  }

  async #leave(pid: number, to: PoweredCpu): Promise<void> {
    if (this.#around.hasEnded(pid)) return;
    const { failed, fromCpu } = await this.#around.migrate({ pid, cpu: to.id });
    if (failed && !this.#around.hasEnded(pid))
      throw new HostError("EBUSY", `cpu${fromCpu} stays online: process ${pid} cannot leave it: ${failed.reason}`);
  }

  async #wake(): Promise<void> {
    await Promise.all(this.#inUse().map((cpu) => this.#powerOn(cpu)));
  }

  /** One that does not answer wakes when it does. */
  async #powerOn({ client }: PoweredCpu): Promise<void> {
    await client.request("cpu.resume", null, { sure: true }).catch((thrown) => {
      if (!(thrown instanceof NoAnswer)) throw thrown;
    });
    client.asleep = undefined;
  }
}

export function offlineText({ id }: PoweredCpu): string {
  return `cpu${id} is offline: 'mkvm cpu online ${id}' brings it back`;
}

export function leastUsed<Cpu extends PoweredCpu>(cpus: readonly Cpu[]): Cpu {
  return cpus.reduce((least, cpu) => (cpu.processes.size < least.processes.size ? cpu : least));
}
