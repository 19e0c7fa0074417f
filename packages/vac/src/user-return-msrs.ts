/**
 * MSRs that a guest's value may stay in until the CPU goes back to user code. Slots are machine-wide and shared by every owner that
 * asks for the same MSR; the host's value is read when a guest's first goes in, so no module has to know it.
 */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { EIO, ENOSPC } from "./errno.ts";
import {
  CpuBlock,
  cpuBlock,
  Header,
  USER_RETURN_OFFSET,
  USER_RETURN_SLOT_BYTES,
  USER_RETURN_SLOTS,
  UserReturnSlot,
  UserReturnValue,
  type VacMemory,
} from "./layout.ts";
import { withLock } from "./spin-lock.ts";
import type { OwnerId } from "./vac.ts";

export interface UserReturnMsrs {
  register(owner: OwnerId, msr: number): number;
  set(owner: OwnerId, slot: number, value: bigint): boolean;
  returnToUser(): void;
  /** Restores what this owner has in flight on this CPU. */
  restoreOwner(owner: OwnerId): void;
  /** Gives up the owner's part in all slots, machine-wide. */
  releaseAll(owner: OwnerId): void;
}

const slotWord = (slot: number) => (USER_RETURN_OFFSET + slot * USER_RETURN_SLOT_BYTES) >> 2;
const bit = (owner: number) => 1 << (owner - 1);

/** The owner's part in all slots. With the slots' lock. */
export function releaseSlotsOf({ words }: VacMemory, owner: number): void {
  for (let slot = 0; slot < USER_RETURN_SLOTS; slot++) words[slotWord(slot) + UserReturnSlot.owners] &= ~bit(owner);
}

export function createUserReturnMsrs(memory: VacMemory, cpu: LogicalCpu): UserReturnMsrs {
  const { words, quads } = memory;
  const value = (slot: number) => cpuBlock(cpu.id) + CpuBlock.userReturn + slot * UserReturnValue.bytes;
  const ownerWord = (slot: number) => (value(slot) + UserReturnValue.owner) >> 2;

  function restore(slot: number): void {
    const msr = words[slotWord(slot) + UserReturnSlot.msr] >>> 0;
    const host = BigInt.asUintN(64, quads[(value(slot) + UserReturnValue.host) >> 3]);
    const current = BigInt.asUintN(64, quads[(value(slot) + UserReturnValue.current) >> 3]);
    words[ownerWord(slot)] = 0;
    if (host !== current && !cpu.wrmsr(msr, host))
      throw new Error(`VAC: CPU ${cpu.id} refuses its own value 0x${host.toString(16)} of MSR 0x${msr.toString(16)}`);
  }

  return {
    register(owner, msr) {
      if (cpu.rdmsr(msr) === undefined) return -EIO;
      return withLock(memory, Header.userReturnLock, cpu.id, () => {
        let free = -1;
        for (let slot = USER_RETURN_SLOTS - 1; slot >= 0; slot--) {
          const word = slotWord(slot);
          if (words[word + UserReturnSlot.owners] === 0) free = slot;
          else if (words[word + UserReturnSlot.msr] >>> 0 === msr) {
            words[word + UserReturnSlot.owners] |= bit(owner);
            return slot;
          }
        }
        if (free < 0) return -ENOSPC;
        words[slotWord(free) + UserReturnSlot.msr] = msr;
        words[slotWord(free) + UserReturnSlot.owners] = bit(owner);
        return free;
      });
    },
    set(owner, slot, wanted) {
      const word = slotWord(slot);
      if (slot < 0 || slot >= USER_RETURN_SLOTS || !(words[word + UserReturnSlot.owners] & bit(owner)))
        throw new Error(`VAC: owner ${owner} sets user-return slot ${slot}, which it did not register`);
      const msr = words[word + UserReturnSlot.msr] >>> 0;
      const inFlight = words[ownerWord(slot)] !== 0;
      const current = inFlight ? BigInt.asUintN(64, quads[(value(slot) + UserReturnValue.current) >> 3]) : cpu.rdmsr(msr);
      if (current === undefined) return false;
      if (current !== wanted && !cpu.wrmsr(msr, wanted)) return false;
      if (!inFlight) quads[(value(slot) + UserReturnValue.host) >> 3] = BigInt.asIntN(64, current);
      quads[(value(slot) + UserReturnValue.current) >> 3] = BigInt.asIntN(64, wanted);
      words[ownerWord(slot)] = owner;
      return true;
    },
    returnToUser() {
      for (let slot = 0; slot < USER_RETURN_SLOTS; slot++) if (words[ownerWord(slot)] !== 0) restore(slot);
    },
    restoreOwner(owner) {
      for (let slot = 0; slot < USER_RETURN_SLOTS; slot++) if (words[ownerWord(slot)] === owner) restore(slot);
    },
    releaseAll(owner) {
      withLock(memory, Header.userReturnLock, cpu.id, () => releaseSlotsOf(memory, owner));
    },
  };
}
