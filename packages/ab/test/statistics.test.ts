import { describe, expect, it } from "vitest";
import { planSchema } from "../src/plan/schema.ts";
import { createRandom } from "../src/run/random.ts";
import { bootstrapInterval } from "../src/statistics/bootstrap.ts";
import { adjusted } from "../src/statistics/correction.ts";
import { cliffsDelta, hodgesLehmannShift, pseudoMedian } from "../src/statistics/effect.ts";
import { midRanks, rankTest, smallestP } from "../src/statistics/rank-test.ts";
import { signedRankTest, smallestPairedP } from "../src/statistics/signed-rank-test.ts";
import { compareAll, isPrecise, matches } from "../src/statistics/verdict.ts";

/** Permeability constants of the human chorioamnion: the example of R's help page ?wilcox.test, from Hollander and Wolfe (1973). */
const atTerm = [0.8, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
const weeks12to26 = [1.15, 0.88, 0.9, 0.74, 1.21];

describe("rank test", () => {
  it("gives what R prints for the example of ?wilcox.test", () => {
    // W = 35, p-value = 0.2544 (two-sided; the help page's one-sided p is 0.1272)
    const { u, p, method } = rankTest(weeks12to26, atTerm);
    expect({ u, method }).toEqual({ u: 35, method: "exact" });
    expect(p).toBeCloseTo(0.2544, 4);
  });

  it("is 2 over the number of choices at its smallest", () => {
    expect(smallestP(3, 3)).toBeCloseTo(2 / 20, 12);
    expect(smallestP(5, 5)).toBeCloseTo(2 / 252, 12);
    expect(smallestP(10, 10)).toBeCloseTo(2 / 184756, 12);
  });

  it("says nothing where nothing differs", () => {
    expect(rankTest([5, 5, 5], [5, 5, 5]).p).toBe(1);
    expect(rankTest([1, 2, 3, 4], [1, 2, 3, 4]).p).toBe(1);
    const many = Array.from({ length: 80 }, (_, index) => index);
    expect(rankTest(many, many)).toMatchObject({ p: 1, method: "normal" });
  });

  it("agrees with counting all choices, with ties", () => {
    const random = createRandom(7);
    for (let round = 0; round < 40; round++) {
      const draw = (size: number) => Array.from({ length: size }, () => random.below(5));
      const [a, b] = [draw(2 + random.below(4)), draw(2 + random.below(4))];
      expect(rankTest(a, b).p, `${a} against ${b}`).toBeCloseTo(countedP(a, b), 10);
    }
  });

  it("goes over into the normal approximation without a step", () => {
    const random = createRandom(3);
    const a = Array.from({ length: 50 }, () => random.below(1000));
    const b = Array.from({ length: 50 }, () => random.below(1000) + 150);
    const exact = rankTest(a, b);
    const normal = rankTest([...a, 500], [...b, 500]);
    expect([exact.method, normal.method]).toEqual(["exact", "normal"]);
    expect(normal.p / exact.p).toBeGreaterThan(0.8);
    expect(normal.p / exact.p).toBeLessThan(1.4);
  });

  it("gives equal values the mean of their ranks", () => {
    expect(midRanks([10, 20, 20, 5])).toEqual([2, 3.5, 3.5, 1]);
  });
});

/** Depression scale factors before and after: the paired example of R's help page ?wilcox.test, from Hollander and Wolfe (1973). */
const before = [1.83, 0.5, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.3];
const after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];

describe("signed-rank test", () => {
  it("gives what R prints for the example of ?wilcox.test", () => {
    // V = 40, p-value = 0.03906 (two-sided; the help page's one-sided p is 0.01953)
    const { v, p, method } = signedRankTest(after.map((value, index) => before[index]! - value));
    expect({ v, method }).toEqual({ v: 40, method: "exact-pairs" });
    expect(p).toBeCloseTo(0.0390625, 7);
  });

  it("is 2 over the number of ways to give signs at its smallest", () => {
    for (const pairs of [1, 2, 5, 6, 12]) {
      const { p } = signedRankTest(Array.from({ length: pairs }, (_, index) => index + 1));
      expect(p).toBeCloseTo(smallestPairedP(pairs), 12);
    }
  });

  it("says nothing where nothing differs", () => {
    expect(signedRankTest([0, 0, 0]).p).toBe(1);
    expect(signedRankTest([1, -1, 2, -2]).p).toBe(1);
  });

  it("agrees with counting all signs, with ties and zeros", () => {
    const random = createRandom(9);
    for (let round = 0; round < 40; round++) {
      const differences = Array.from({ length: 2 + random.below(8) }, () => random.below(9) - 4);
      expect(signedRankTest(differences).p, `${differences}`).toBeCloseTo(countedSigns(differences), 10);
    }
  });

  it("goes over into the normal approximation without a step", () => {
    const random = createRandom(3);
    const differences = Array.from({ length: 200 }, () => random.below(1000) - 440);
    const exact = signedRankTest(differences);
    const normal = signedRankTest([...differences, 60]);
    expect([exact.method, normal.method]).toEqual(["exact-pairs", "normal-pairs"]);
    expect(normal.p / exact.p).toBeGreaterThan(0.7);
    expect(normal.p / exact.p).toBeLessThan(1.4);
  });
});

/** By the definition: how many of all ways to give the ranks signs have a positive sum as extreme. */
function countedSigns(differences: readonly number[]): number {
  const ranks = midRanks(differences.map(Math.abs)).filter((_, index) => differences[index] !== 0);
  const mean = ranks.reduce((sum, rank) => sum + rank, 0) / 2;
  const signs = differences.filter((difference) => difference !== 0).map((difference) => difference > 0);
  const distanceOf = (isPositive: (index: number) => boolean) =>
    Math.abs(ranks.reduce((sum, rank, index) => sum + (isPositive(index) ? rank : 0), 0) - mean);
  const distance = distanceOf((index) => signs[index]!);
  const ways = Array.from({ length: 1 << ranks.length }, (_, way) => distanceOf((index) => (way & (1 << index)) !== 0));
  return ways.filter((found) => found >= distance - 1e-9).length / ways.length;
}

/** By the definition: how many of all choices choices of b's size from the pool have a rank sum as extreme. */
function countedP(a: readonly number[], b: readonly number[]): number {
  const ranks = midRanks([...a, ...b]);
  const mean = (b.length * (ranks.length + 1)) / 2;
  const distance = Math.abs(ranks.slice(a.length).reduce((sum, rank) => sum + rank, 0) - mean);
  let extreme = 0;
  let all = 0;
  for (let choice = 0; choice < 1 << ranks.length; choice++) {
    const chosen = ranks.filter((_, index) => choice & (1 << index));
    if (chosen.length !== b.length) continue;
    all++;
    if (Math.abs(chosen.reduce((sum, rank) => sum + rank, 0) - mean) >= distance - 1e-9) extreme++;
  }
  return extreme / all;
}

describe("correction", () => {
  // R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") and "BH"
  it.each([
    ["holm", [0.05, 0.08, 0.09, 0.09, 0.09]],
    ["benjamini-hochberg", [0.05, 0.05, 0.05, 0.05, 0.05]],
  ] as const)("gives what p.adjust of R gives: %s", (correction, expected) => {
    const found = adjusted([0.01, 0.02, 0.03, 0.04, 0.05], correction);
    for (const [index, value] of expected.entries()) expect(found[index]).toBeCloseTo(value, 12);
  });

  it("keeps the order of what it is given, and 1 as the most", () => {
    expect(adjusted([0.5, 0.001, 0.9], "holm")).toEqual([1, 0.003, 1]);
    expect(adjusted([], "holm")).toEqual([]);
  });
});

describe("effect", () => {
  it("is the median of all differences", () => {
    const random = createRandom(11);
    for (let round = 0; round < 60; round++) {
      const draw = (size: number) => Array.from({ length: size }, () => random.below(50) / 7);
      const [a, b] = [draw(1 + random.below(9)), draw(1 + random.below(9))];
      const all = b.flatMap((right) => a.map((left) => right - left)).sort((x, y) => x - y);
      const middle = all.length / 2;
      const expected = all.length % 2 ? all[Math.floor(middle)]! : (all[middle - 1]! + all[middle]!) / 2;
      expect(hodgesLehmannShift(a, b)).toBe(expected);
    }
  });

  it("gives R's estimate for the example of ?wilcox.test", () => {
    // wilcox.test(x, y, conf.int = TRUE): difference in location 0.305
    expect(hodgesLehmannShift(weeks12to26, atTerm)).toBeCloseTo(0.305, 12);
  });

  it("of pairs is the median of all means of two differences", () => {
    // R: wilcox.test(x, y, paired = TRUE, conf.int = TRUE) gives the median over i <= j, 0.46; over all i and j it is this near.
    expect(pseudoMedian(after.map((value, index) => before[index]! - value))).toBeCloseTo(0.46, 1);
    const differences = [3, 8, 1, 30];
    const means = differences.flatMap((x) => differences.map((y) => (x + y) / 2)).sort((x, y) => x - y);
    expect(pseudoMedian(differences)).toBe((means[7]! + means[8]!) / 2);
  });

  it("is 1 where all of b is above all of a, 0 where they are alike", () => {
    expect(cliffsDelta(rankTest([1, 2, 3], [4, 5]).u, 3, 2)).toBe(1);
    expect(cliffsDelta(rankTest([4, 5], [1, 2, 3]).u, 2, 3)).toBe(-1);
    expect(cliffsDelta(rankTest([1, 2], [1, 2]).u, 2, 2)).toBe(0);
  });
});

describe("bootstrap", () => {
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

  it("is replayed by its seed", () => {
    const interval = (seed: number) =>
      bootstrapInterval([atTerm], mean, { random: createRandom(seed), resamples: 500, confidence: 0.95 });
    expect(interval(1)).toEqual(interval(1));
    expect(interval(1)).not.toEqual(interval(2));
  });

  it("covers what it should about as often as it says", () => {
    const random = createRandom(5);
    let covered = 0;
    for (let round = 0; round < 300; round++) {
      // Sums of dice: mean 10.5.
      const sample = Array.from({ length: 40 }, () => 3 + random.below(6) + random.below(6) + random.below(6));
      const [low, high] = bootstrapInterval([sample], mean, { random, resamples: 400, confidence: 0.9 });
      if (low <= 10.5 && high >= 10.5) covered++;
    }
    expect(covered / 300).toBeGreaterThan(0.84);
    expect(covered / 300).toBeLessThan(0.95);
  });
});

const plan = (over: object = {}) =>
  planSchema.parse({
    arms: { a: { module: "x" }, b: { module: "y" } },
    workload: { kind: "image", kernel: "k", end: "e" },
    thresholds: [{ metric: "time", percent: 5 }],
    ...over,
  });

describe("verdict", () => {
  const spread = (middle: number) => [-4, -3, -2, -1, -0.5, 0.5, 1, 2, 3, 4].map((offset) => middle + offset);
  const judged = (a: readonly number[], b: readonly number[], over: object = {}) =>
    compareAll([{ metric: "time", a, b, paired: false }], plan(over), 1)[0]!;

  it.each([
    ["regressed", "worse by more than the threshold", spread(1000), spread(1060)],
    ["improved", "better by more than the threshold", spread(1060), spread(1000)],
    ["same", "equal", spread(1000), spread(1000)],
    ["same", "surely worse, by less than the threshold", spread(1000), spread(1030)],
    ["inconclusive", "too few to find anything", [1000, 1001], [1001, 1002]],
    ["same", "few, and all equal", [1000, 1000], [1000, 1000]],
    ["inconclusive", "as noisy as the threshold is wide", [500, 1500, 700, 1300, 1000], [520, 1560, 730, 1350, 1040]],
  ])("is %s when %s", (verdict, _, a, b) => {
    expect(judged(a, b).verdict).toBe(verdict);
  });

  it("turns round where higher is better", () => {
    const thresholds = [{ metric: "time", worse: "lower", percent: 5 }];
    expect(judged(spread(1000), spread(1060), { thresholds }).verdict).toBe("improved");
    expect(judged(spread(1060), spread(1000), { thresholds }).verdict).toBe("regressed");
  });

  it.each([
    [100, 105, 5, "regressed"],
    [100, 104, 5, "same"],
    [100, 95, 5, "improved"],
    [0, 0, 0, "same"],
    [100, 101, 0, "regressed"],
    [0, 1, 5, "regressed"],
  ])("compares single values under icount: %d against %d at %d %%", (a, b, percent, verdict) => {
    const comparison = judged([a, a], [b, b], { clock: "icount", thresholds: [{ metric: "time", percent }] });
    expect(comparison).toMatchObject({ method: "equal-rounds", verdict });
    expect(comparison.p).toBeUndefined();
  });

  it("tests under icount too when rounds differ", () => {
    expect(judged([100, 101], [105, 106], { clock: "icount" })).toMatchObject({ method: "exact", verdict: "inconclusive" });
  });

  it("takes thresholds in the metric's unit, and the first that fits", () => {
    const thresholds = [
      { metric: "ti*", absolute: 100 },
      { metric: "*", percent: 0 },
    ];
    expect(judged(spread(1000), spread(1060), { thresholds }).verdict).toBe("same");
  });

  it("judges nothing that has no threshold", () => {
    const [comparison] = compareAll([{ metric: "exits", a: spread(1), b: spread(500), paired: true }], plan(), 1);
    expect(comparison!.verdict).toBeUndefined();
  });

  describe("of pairs", () => {
    // What a busy machine does to both runs of a round alike is far larger than what differs.
    const load = [1000, 1800, 1100, 2500, 1300, 900, 1700, 2100, 1200, 1500];
    const slower = load.map((value, index) => value * 1.06 + (index % 3));
    const compared = (paired: boolean) => compareAll([{ metric: "time", a: load, b: slower, paired }], plan(), 1)[0]!;

    it("sees through what both have in common", () => {
      expect(compared(false).verdict).toBe("inconclusive");
      expect(compared(true)).toMatchObject({ verdict: "regressed", method: "exact-pairs" });
    });

    it("is precise when the interval is no wider than the threshold, wherever it lies", () => {
      expect(isPrecise([compared(false)])).toBe(false);
      const [equal, other] = [0, 500].map(
        (more) =>
          compareAll(
            [{ metric: "time", a: load, b: load.map((value, i) => value + more + (i % 5)), paired: true }],
            plan(),
            1,
          )[0]!,
      );
      expect(isPrecise([equal!, other!])).toBe(true);
    });
  });

  it.each([false, true])("holds false alarms down over many metrics; in pairs: %s", (paired) => {
    const random = createRandom(17);
    const noise = () => Array.from({ length: 8 }, () => 1000 + random.below(400));
    const thresholds = [{ metric: "*", percent: 1 }];
    let alarms = 0;
    for (let round = 0; round < 60; round++) {
      const samples = Array.from({ length: 20 }, (_, index) => ({ metric: `m${index}`, a: noise(), b: noise(), paired }));
      const found = compareAll(samples, plan({ thresholds, resamples: 200 }), round);
      if (found.some(({ verdict }) => verdict === "regressed" || verdict === "improved")) alarms++;
    }
    expect(alarms).toBeLessThanOrEqual(3);
  });
});

it.each([
  ["exits", "exits", true],
  ["exits", "io_exits", false],
  ["*exits", "io_exits", true],
  ["exit_*.p99", "exit_hlt.p99", true],
  ["exit_*.p99", "exit_hltxp99", false],
  ["*", "", true],
])("the pattern %j fits %j: %s", (pattern, name, fits) => {
  expect(matches(pattern, name)).toBe(fits);
});
