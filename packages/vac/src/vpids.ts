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

/** Byte of the bit that says that a CPU gave this VPID. It means nothing for a VPID that nobody holds. */
function givenBy(cpu: number, vpid: number): number {
  return cpuBlock(cpu) + CpuBlock.vpids + (vpid >> 3);
}

function bitOf(vpid: number): number {
  return 1 << (vpid & 7);
}

/** All VPIDs of an owner: nobody holds it any more. With the VPIDs' lock. */
export function freeVpidsOf({ bytes }: VacMemory, owner: number): void {
  for (let vpid = 1; vpid < VPIDS; vpid++) if (bytes[VPID_OFFSET + vpid] === owner) bytes[VPID_OFFSET + vpid] = VpidState.freed;
}

/** What a CPU whose thread died had given, whoever held it there. With the VPIDs' lock. */
export function freeVpidsGivenBy({ bytes }: VacMemory, cpu: number): void {
  for (let vpid = 1; vpid < VPIDS; vpid++) {
    const state = bytes[VPID_OFFSET + vpid];
    const isHeld = state > VpidState.free && state < VpidState.freed;
    if (isHeld && bytes[givenBy(cpu, vpid)] & bitOf(vpid)) bytes[VPID_OFFSET + vpid] = VpidState.freed;
  }
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
        for (let id = 0; id < memory.cpus; id++) bytes[givenBy(id, vpid)] &= ~bitOf(vpid);
        bytes[givenBy(cpu.id, vpid)] |= bitOf(vpid);
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
      withLock(memory, Header.vpidLock, cpu.id, () => freeVpidsOf(memory, owner));
    },
    flushIfStale() {
      const current = Atomics.load(words, Header.vpidGeneration);
      if (words[generation] === current) return;
      cpu.vmx.invvpid(INVVPID_ALL_CONTEXTS, 0, 0n);
      words[generation] = current;
    },
  };
}
