/** Seeded random numbers for tests: a failing run prints its seed, and the seed replays it exactly. */
export interface Random {
  /** 32 random bits, unsigned. */
  next(): number;
  /** Whole number from 0 to `bound` - 1. */
  below(bound: number): number;
  /** True once in `n`. */
  oneIn(n: number): boolean;
  pick<T>(from: readonly T[]): T;
  /** 64 random bits. */
  next64(): bigint;
}

/** Mulberry32. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
  const below = (bound: number): number => Math.floor((next() / 0x1_0000_0000) * bound);
  return {
    next,
    below,
    oneIn: (n) => below(n) === 0,
    pick: (from) => from[below(from.length)],
    next64: () => (BigInt(next()) << 32n) | BigInt(next()),
  };
}

/** What tests draw from unless told otherwise: whether a commit passes must not hang on the day. `pnpm verify:*` draw seeds of their own. */
const USUAL_SEED = 20_261_127;

/** The seed of this run: MKVM_SEED, which may be `random`. */
export function chooseSeed(): number {
  const given = process.env.MKVM_SEED ?? USUAL_SEED;
  return given === "random" ? Math.floor(Math.random() * 0x1_0000_0000) : Number(given) >>> 0;
}
