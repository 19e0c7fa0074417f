/** Which vCPU each CPU runs. A CPU writes its own entry; every CPU may read it. */
import { CpuBlock, cpuBlock, type VacMemory } from "./layout.ts";
import type { OwnerId } from "./vac.ts";

export interface RunningVcpu {
  set(owner: OwnerId, token: number): void;
  clear(owner: OwnerId): void;
  get(cpu: number): { owner: OwnerId; token: number } | undefined;
}

export function createRunningVcpu(memory: VacMemory, cpu: number): RunningVcpu {
  const { words } = memory;
  const ownerWord = (id: number) => (cpuBlock(id) + CpuBlock.runningOwner) >> 2;
  const tokenWord = (id: number) => (cpuBlock(id) + CpuBlock.runningToken) >> 2;
  return {
    set(owner, token) {
      const holder = Atomics.load(words, ownerWord(cpu));
      if (holder !== 0 && holder !== owner)
        throw new Error(`VAC: owner ${owner} runs a vCPU on CPU ${cpu} while owner ${holder} does`);
      Atomics.store(words, tokenWord(cpu), token);
      Atomics.store(words, ownerWord(cpu), owner);
    },
    clear(owner) {
      Atomics.compareExchange(words, ownerWord(cpu), owner, 0);
    },
    get(id) {
      if (id < 0 || id >= memory.cpus) return undefined;
      const owner = Atomics.load(words, ownerWord(id));
      return owner === 0 ? undefined : { owner: owner as OwnerId, token: Atomics.load(words, tokenWord(id)) >>> 0 };
    },
  };
}
