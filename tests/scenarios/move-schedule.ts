/** When a VM moves: instruction counts, ascending; it goes to kvm2 first, then to and fro. */
export type Schedule = readonly number[];

/** Numbers below `below`, the same for the same seed. */
export function* random(seed: number, below: number): Generator<number, never> {
  let state = seed >>> 0 || 1;
  for (;;) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    yield state % below;
  }
}

/** `count` moves at random instruction counts below `limit`. */
export function randomSchedule(seed: number, count: number, limit: number): Schedule {
  const numbers = random(seed, limit);
  return Array.from({ length: count }, () => numbers.next().value).sort((a, b) => a - b);
}

/** The schedule as the host takes it. */
export function movesOf(schedule: Schedule): { at: number; to: string }[] {
  return schedule.map((at, index) => ({ at, to: index % 2 ? "kvm1" : "kvm2" }));
}

/**
 * A schedule that still fails and of which no single move can be left out. Leaves out runs of moves, half of them first, then ever
 * shorter ones; what is left out turns the direction of those behind it, so each candidate is tried for real.
 */
export async function shrink(schedule: Schedule, fails: (candidate: Schedule) => Promise<boolean>): Promise<Schedule> {
  let shortest = schedule;
  let length = Math.ceil(shortest.length / 2);
  while (length >= 1) {
    let shorter = false;
    for (let start = 0; start < shortest.length; ) {
      const candidate = [...shortest.slice(0, start), ...shortest.slice(start + length)];
      if (await fails(candidate)) {
        shortest = candidate;
        shorter = true;
      } else start += length;
    }
    if (length === 1 && !shorter) break;
    if (length > 1) length = Math.floor(length / 2);
  }
  return shortest;
}
