/** Locks in VAC's shared memory. Held for a few loads and stores only, never over a VMX instruction. */
import { Header, type VacMemory } from "./layout.ts";

/** Far longer than any holder needs; a lock that is held longer belongs to a CPU that died with it. */
const SPIN_LIMIT = 200_000_000;

export function withLock<T>(memory: VacMemory, lock: number, cpu: number, body: () => T): T {
  const { words } = memory;
  let spins = 0;
  for (;;) {
    const holder = Atomics.compareExchange(words, lock, 0, cpu + 1);
    if (holder === 0) break;
    if (holder === cpu + 1) throw new Error(`VAC: CPU ${cpu} takes the ${lockName(lock)} that it holds already`);
    if (++spins > SPIN_LIMIT)
      throw new Error(`VAC: CPU ${holder - 1} does not give back the ${lockName(lock)}; CPU ${cpu} waits`);
  }
  try {
    return body();
  } finally {
    Atomics.store(words, lock, 0);
  }
}

function lockName(lock: number): string {
  return Object.entries(Header).find(([, word]) => word === lock)?.[0] ?? `lock ${lock}`;
}
