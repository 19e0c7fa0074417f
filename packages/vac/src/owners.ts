/** Claims of loaded modules, one for each module name, over all CPUs. */
import { EEXIST, EINVAL, ENOSPC } from "./errno.ts";
import { Header, MAX_NAME_BYTES, MAX_OWNERS, OWNER_BYTES, OWNERS_OFFSET, Owner, type VacMemory } from "./layout.ts";
import { withLock } from "./spin-lock.ts";
import type { OwnerId } from "./vac.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** `claimed` while the last CPU gives everything back: neither free nor to be joined. */
const ENDING = 2;

export interface Owners {
  register(moduleName: string): OwnerId | number;
  /** Takes this CPU out of the claim. True when it was the last: then `last` has run, under no lock, and the id is free. */
  unregister(owner: OwnerId, last: () => void): void;
  /** Throws when `owner` is not registered on this CPU: a programmer's mistake. */
  check(owner: OwnerId): void;
  nameOf(owner: number): string;
}

export function createOwners(memory: VacMemory, cpu: number): Owners {
  const { words, bytes } = memory;
  const at = (owner: number) => (OWNERS_OFFSET + (owner - 1) * OWNER_BYTES) >> 2;
  const cpuWord = cpu < 32 ? Owner.cpusLow : Owner.cpusHigh;
  const cpuBit = 1 << (cpu & 31);
  const nameOf = (owner: number) => {
    const start = (at(owner) + Owner.name) * 4;
    // A copy: TextDecoder takes no shared memory
    return decoder.decode(bytes.slice(start, start + words[at(owner) + Owner.nameBytes]));
  };

  return {
    nameOf,
    register(moduleName) {
      const name = encoder.encode(moduleName);
      if (name.length === 0 || name.length > MAX_NAME_BYTES) return -EINVAL;
      return withLock(memory, Header.ownersLock, cpu, () => {
        let free = 0;
        for (let owner = MAX_OWNERS; owner >= 1; owner--) {
          const word = at(owner);
          if (!words[word + Owner.claimed]) free = owner;
          else if (nameOf(owner) === moduleName) {
            if (words[word + Owner.claimed] === ENDING || words[word + cpuWord] & cpuBit) return -EEXIST;
            words[word + cpuWord] |= cpuBit;
            return owner;
          }
        }
        if (!free) return -ENOSPC;
        const word = at(free);
        words[word + Owner.cpusLow] = 0;
        words[word + Owner.cpusHigh] = 0;
        words[word + cpuWord] = cpuBit;
        words[word + Owner.nameBytes] = name.length;
        bytes.set(name, (word + Owner.name) * 4);
        Atomics.store(words, word + Owner.claimed, 1);
        return free;
      });
    },
    unregister(owner, last) {
      const word = at(owner);
      const isLast = withLock(memory, Header.ownersLock, cpu, () => {
        words[word + cpuWord] &= ~cpuBit;
        const none = words[word + Owner.cpusLow] === 0 && words[word + Owner.cpusHigh] === 0;
        if (none) words[word + Owner.claimed] = ENDING;
        return none;
      });
      if (!isLast) return;
      last();
      Atomics.store(words, word + Owner.claimed, 0);
    },
    check(owner) {
      const registered =
        Number.isInteger(owner) &&
        owner >= 1 &&
        owner <= MAX_OWNERS &&
        words[at(owner) + Owner.claimed] &&
        words[at(owner) + cpuWord] & cpuBit;
      if (!registered) throw new Error(`VAC: owner ${owner} is not registered on CPU ${cpu}`);
    },
  };
}
