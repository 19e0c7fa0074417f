/** Randomness that a seed replays. */
import { uniformInt } from "pure-rand/distribution/uniformInt";
import { xoroshiro128plus } from "pure-rand/generator/xoroshiro128plus";

export interface Random {
  /** 0 to count - 1. */
  below(count: number): number;
}

/** `stream`: independent sequences of one seed. */
export function createRandom(seed: number, stream = 0): Random {
  const generator = xoroshiro128plus(seed);
  for (let jumps = 0; jumps < stream; jumps++) generator.jump();
  return { below: (count) => uniformInt(generator, 0, count - 1) };
}

export function newSeed(): number {
  return Math.floor(Math.random() * 0x1_0000_0000);
}

/** Fisher and Yates. */
export function shuffled<Item>(items: readonly Item[], random: Random): Item[] {
  const order = [...items];
  for (let last = order.length - 1; last > 0; last--) {
    const other = random.below(last + 1);
    [order[last], order[other]] = [order[other]!, order[last]!];
  }
  return order;
}
