/** The virtualization extension of one CPU, VMX or SVM, counted over owners: on with the first get, off with the last put. */
import { EAGAIN, EIO } from "./errno.ts";
import { CpuBlock, cpuBlock, MAX_OWNERS, type VacMemory } from "./layout.ts";
import type { LoadedVmcss } from "./loaded-vmcs.ts";
import type { OwnerId } from "./vac.ts";

/** How a vendor's extension goes on and off. */
export interface Extension {
  readonly name: string;
  /** 0 or a negative errno, and then nothing has changed. */
  on(): number;
  off(): void;
}

export interface Virtualization {
  enable(owner: OwnerId): number;
  disable(owner: OwnerId): void;
  /** Puts every get of the owner. */
  disableAll(owner: OwnerId): void;
  users(): OwnerId[];
  /** `callbacks` run first, with the extension still on. */
  emergencyDisable(callbacks: readonly (() => void)[]): void;
  /** As `emergencyDisable`, but `resume` takes it back. */
  suspend(callbacks: readonly (() => void)[]): void;
  /** 0 or a negative errno: it is off for good then. */
  resume(): number;
  readonly isOn: boolean;
}

export function createVirtualization(
  memory: VacMemory,
  cpu: number,
  extension: Extension,
  loaded: LoadedVmcss,
): Virtualization {
  const { words } = memory;
  const block = cpuBlock(cpu);
  const total = (block + CpuBlock.enableTotal) >> 2;
  const emergency = (block + CpuBlock.emergency) >> 2;
  const suspended = (block + CpuBlock.suspended) >> 2;
  const count = (owner: number) => ((block + CpuBlock.enableCounts) >> 2) + owner;

  function put(owner: OwnerId, gets: number): void {
    const left = Atomics.sub(words, count(owner), gets) - gets;
    // The list is empty of this owner before its last put: nobody may find a VMCS whose owner is gone
    if (left === 0) loaded.clearAll(owner);
    if (Atomics.sub(words, total, gets) - gets > 0) return;
    turnOff([]);
  }

  function turnOff(callbacks: readonly (() => void)[]): void {
    if (Atomics.load(words, suspended)) return;
    for (const callback of callbacks) callback();
    // VMCLEAR first: VMXOFF with an active VMCS may lose what is cached of it, for whoever reads the memory afterwards
    loaded.clearAll(undefined);
    extension.off();
  }

  function disableForGood(callbacks: readonly (() => void)[]): void {
    if (Atomics.exchange(words, emergency, 1)) return;
    const wasOn = Atomics.exchange(words, total, 0) > 0;
    for (let owner = 1; owner <= MAX_OWNERS; owner++) Atomics.store(words, count(owner), 0);
    if (wasOn) turnOff(callbacks);
  }

  return {
    get isOn() {
      return Atomics.load(words, total) > 0 && !Atomics.load(words, suspended);
    },
    enable(owner) {
      if (Atomics.load(words, emergency)) return -EIO;
      if (Atomics.load(words, suspended)) return -EAGAIN;
      if (Atomics.load(words, total) === 0) {
        const result = extension.on();
        if (result < 0) return result;
      }
      Atomics.add(words, count(owner), 1);
      Atomics.add(words, total, 1);
      return 0;
    },
    disable(owner) {
      if (Atomics.load(words, emergency)) return;
      if (Atomics.load(words, count(owner)) === 0)
        throw new Error(`VAC: owner ${owner} puts ${extension.name} on CPU ${cpu} without a get`);
      put(owner, 1);
    },
    disableAll(owner) {
      const gets = Atomics.load(words, count(owner));
      if (gets > 0 && !Atomics.load(words, emergency)) put(owner, gets);
    },
    users() {
      const users: OwnerId[] = [];
      for (let owner = 1; owner <= MAX_OWNERS; owner++) if (Atomics.load(words, count(owner)) > 0) users.push(owner as OwnerId);
      return users;
    },
    emergencyDisable: disableForGood,
    suspend(callbacks) {
      if (Atomics.load(words, total) > 0) turnOff(callbacks);
      Atomics.store(words, suspended, 1);
    },
    resume() {
      const result = Atomics.load(words, total) > 0 ? extension.on() : 0;
      if (result < 0) disableForGood([]);
      Atomics.store(words, suspended, 0);
      return result;
    },
  };
}
