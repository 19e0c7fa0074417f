/**
 * VPIDs, unique on the machine: two modules that used one number would read each other's translations. A freed VPID stays out of
 * use until no other is left; then all freed ones come back at once in a new generation, and each CPU drops every tagged
 * translation before it runs a guest in that generation.
 */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { CpuBlock, cpuBlock, Header, type VacMemory, VPID_OFFSET, VPIDS, VpidState } from "./layout.ts";
import { withLock } from "./spin-lock.ts";
import type { OwnerId } from "./vac.ts";

const INVVPID_ALL_CONTEXTS = 2;

export interface Vpids {
  allocate(owner: OwnerId): number;
  free(owner: OwnerId, vpid: number): void;
  freeAll(owner: OwnerId): void;
  /** Before a guest runs: drops translations of an older generation. VMX is on. */
  flushIfStale(): void;
}

export function createVpids(memory: VacMemory, cpu: LogicalCpu): Vpids {
  const { words, bytes } = memory;
  const generation = (cpuBlock(cpu.id) + CpuBlock.vpidGeneration) >> 2;

  /** First free VPID from `vpidNext` on, round once; 0 when there is none. */
  function search(): number {
    const start = words[Header.vpidNext];
    for (let i = 0; i < VPIDS; i++) {
      const vpid = (start + i) % VPIDS;
      if (bytes[VPID_OFFSET + vpid] === VpidState.free) return vpid;
    }
    return 0;
  }

  function recycle(): boolean {
    let found = false;
    for (let vpid = 1; vpid < VPIDS; vpid++)
      if (bytes[VPID_OFFSET + vpid] === VpidState.freed) {
        bytes[VPID_OFFSET + vpid] = VpidState.free;
        found = true;
      }
    if (found) Atomics.add(words, Header.vpidGeneration, 1);
    return found;
  }

  return {
    allocate(owner) {
      return withLock(memory, Header.vpidLock, cpu.id, () => {
        let vpid = search();
        if (vpid === 0 && recycle()) vpid = search();
        if (vpid === 0) return 0;
        bytes[VPID_OFFSET + vpid] = owner;
        words[Header.vpidNext] = (vpid + 1) % VPIDS;
        return vpid;
      });
    },
    free(owner, vpid) {
      withLock(memory, Header.vpidLock, cpu.id, () => {
        if (vpid <= 0 || vpid >= VPIDS || bytes[VPID_OFFSET + vpid] !== owner)
          throw new Error(`VAC: owner ${owner} frees VPID ${vpid}, which it does not hold`);
        bytes[VPID_OFFSET + vpid] = VpidState.freed;
      });
    },
    freeAll(owner) {
      withLock(memory, Header.vpidLock, cpu.id, () => {
        for (let vpid = 1; vpid < VPIDS; vpid++)
          if (bytes[VPID_OFFSET + vpid] === owner) bytes[VPID_OFFSET + vpid] = VpidState.freed;
      });
    },
    flushIfStale() {
      const current = Atomics.load(words, Header.vpidGeneration);
      if (words[generation] === current) return;
      cpu.vmx.invvpid(INVVPID_ALL_CONTEXTS, 0, 0n);
      words[generation] = current;
    },
  };
}
