/**
 * What a CPU leaves behind whose thread died: nobody on it can give anything back. Another thread does, for it, once that thread is
 * known to run no more. Virtualization on the CPU itself died with it.
 */
import {
  CPU_BYTES,
  CpuBlock,
  cpuBlock,
  Header,
  MAX_OWNERS,
  OWNER_BYTES,
  OWNERS_OFFSET,
  Owner,
  openVacMemory,
} from "./layout.ts";
import { withLock } from "./spin-lock.ts";
import { releaseSlotsOf } from "./user-return-msrs.ts";
import { freeVpidsGivenBy, freeVpidsOf } from "./vpids.ts";

const locks = [Header.ownersLock, Header.vpidLock, Header.userReturnLock, Header.loadedVmcsLock];

/**
 * Gives back what CPU `dead` held: its locks, VPIDs, loaded VMCSs and its part in each owner's claim, which ends where that was the
 * last one. The CPU does not come back. `shared`: memory that `createVacMemory` made.
 */
export function reclaimDeadCpu(shared: SharedArrayBuffer, dead: number): void {
  const memory = openVacMemory(shared);
  const { words, bytes } = memory;
  if (!Number.isInteger(dead) || dead < 0 || dead >= memory.cpus)
    throw new RangeError(`VAC memory is for ${memory.cpus} CPUs, there is no CPU ${dead}`);
  // What they protect is whole after each store, so whoever waits may go on
  for (const lock of locks) Atomics.compareExchange(words, lock, dead + 1, 0);
  // Locks are taken in the dead CPU's name
  withLock(memory, Header.vpidLock, dead, () => freeVpidsGivenBy(memory, dead));
  for (let owner = 1; owner <= MAX_OWNERS; owner++) {
    const word = (OWNERS_OFFSET + (owner - 1) * OWNER_BYTES) >> 2;
    const isLast = withLock(memory, Header.ownersLock, dead, () => {
      const cpus = word + (dead < 32 ? Owner.cpusLow : Owner.cpusHigh);
      const took = (words[cpus] & (1 << (dead & 31))) !== 0;
      words[cpus] &= ~(1 << (dead & 31));
      return took && words[word + Owner.cpusLow] === 0 && words[word + Owner.cpusHigh] === 0;
    });
    if (!isLast) continue;
    withLock(memory, Header.vpidLock, dead, () => freeVpidsOf(memory, owner));
    withLock(memory, Header.userReturnLock, dead, () => releaseSlotsOf(memory, owner));
    Atomics.store(words, word + Owner.claimed, 0);
  }
  withLock(memory, Header.loadedVmcsLock, dead, () => bytes.fill(0, cpuBlock(dead), cpuBlock(dead) + CPU_BYTES));
  Atomics.store(words, (cpuBlock(dead) + CpuBlock.emergency) >> 2, 1);
}
