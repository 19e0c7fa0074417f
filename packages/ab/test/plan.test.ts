import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parseThreshold } from "../src/cli/threshold-flag.ts";
import { checkThresholds } from "../src/plan/metric-names.ts";
import { parsePlan, readPlanFile } from "../src/plan/read-plan.ts";
import { planJsonSchema } from "../src/plan/schema.ts";
import { resultJsonSchema } from "../src/report/result.ts";

const image = { kind: "image", kernel: "k", end: "e" };
const arms = { a: { module: "@mkvm/kvm-v1" }, b: { module: "./mine", parameters: { x: 1, y: "on", z: true } } };
const good = { arms, workload: image };

/** Each refused value beside one that is taken. */
const pairs: [what: string, valid: object, invalid: object, message: string | RegExp][] = [
  ["no more keys", good, { ...good, roundz: 3 }, "plan.json:1:155: roundz: no such key here"],
  ["both arms", good, { ...good, arms: { a: arms.a } }, "plan.json:1:2: arms.b: missing"],
  [
    "no more keys of an arm",
    good,
    { ...good, arms: { ...arms, a: { modul: "x" } } },
    /:1:15: arms\.a\.modul: no such key here/,
  ],
  ["a known workload", good, { arms, workload: { kind: "film" } }, /workload\.kind: /],
  ["keys of its kind of workload", good, { arms, workload: { ...image, script: "s" } }, /workload\.script: no such key here/],
  [
    "a script's initrd",
    { arms, workload: { kind: "script", kernel: "k", initrd: "i", script: "s" } },
    { arms, workload: { kind: "script", kernel: "k", script: "s" } },
    /workload\.initrd: missing/,
  ],
  [
    "an end",
    { arms, workload: { kind: "boot", kernel: "k", end: "login:" } },
    { arms, workload: { kind: "boot", kernel: "k" } },
    /workload\.end: missing/,
  ],
  ["markers in one line", good, { arms, workload: { ...image, end: "a\nb" } }, /workload\.end: a marker is part of one line/],
  [
    "a size",
    { arms, workload: { ...image, memory: "64M" } },
    { arms, workload: { ...image, memory: "much" } },
    /workload\.memory: write a size as 64M/,
  ],
  ["enough rounds", { ...good, rounds: 2 }, { ...good, rounds: 1 }, /rounds: /],
  ["not too many rounds", { ...good, rounds: 500 }, { ...good, rounds: 501 }, /rounds: /],
  [
    "more rounds where needed",
    { ...good, rounds: 6, maxRounds: 6 },
    { ...good, rounds: 6, maxRounds: 5 },
    /maxRounds: give at least/,
  ],
  ["whole rounds", { ...good, rounds: 3 }, { ...good, rounds: 2.5 }, /rounds: /],
  ["numbers as numbers", { ...good, rounds: 3 }, { ...good, rounds: "3" }, /rounds: expected number, received string/],
  ["a clock", { ...good, clock: "icount" }, { ...good, clock: "sun" }, /clock: expected one of "wall"\|"icount"/],
  [
    "one measure",
    { ...good, thresholds: [{ metric: "m", percent: 5 }] },
    { ...good, thresholds: [{ metric: "m", percent: 5, absolute: 5 }] },
    /thresholds\[0\]: give one of percent and absolute/,
  ],
  [
    "a measure",
    { ...good, thresholds: [{ metric: "m", absolute: 0 }] },
    { ...good, thresholds: [{ metric: "m" }] },
    /thresholds\[0\]: give one of percent and absolute/,
  ],
  ["a way back", { ...good, moves: [0.2, 0.4] }, { ...good, moves: [0.2] }, /moves: a VM that goes must come back/],
  ["moves in order", { ...good, moves: [0.2, 0.4] }, { ...good, moves: [0.4, 0.2] }, /moves: give them in ascending order/],
  ["moves inside", { ...good, moves: [0.2, 0.4] }, { ...good, moves: [0.2, 1] }, /moves\[1\]: /],
  [
    "a run that shows the length",
    { ...good, moves: [0.2, 0.4] },
    { ...good, moves: [0.2, 0.4], warmUp: 0 },
    /warmUp: moves need a warm-up run/,
  ],
  [
    "one VM a CPU while moving",
    { ...good, moves: [0.2, 0.4] },
    { ...good, moves: [0.2, 0.4], schedule: "concurrent" },
    /schedule: moves need arms in turn/,
  ],
  ["a chance", { ...good, alpha: 0.01 }, { ...good, alpha: 0 }, /alpha: /],
];

describe("plans", () => {
  it.each(pairs)("need %s", (_, valid, invalid, message) => {
    expect(() => parsePlan(JSON.stringify(valid), "plan.json")).not.toThrow();
    expect(refusalOf(() => parsePlan(JSON.stringify(invalid), "plan.json"))).toMatchObject({
      status: 65,
      message: asMatcher(message),
    });
  });

  it("are refused at the line and column where they are wrong", () => {
    const text =
      '{\n  "arms": { "a": { "module": "x" }, "b": { "module": "y" } },\n  "workload": { "kind": "boot", "kernel": "k", "end": "e",\n    "memory": 5 }\n}';
    expect(refusalOf(() => parsePlan(text, "p.json"))).toMatchObject({
      message: expect.stringMatching(/^p\.json:4:5: workload\.memory: /),
    });
  });

  it.each([
    ["", "p.json:1:1: no JSON: value expected"],
    ['{ "arms": 1, }', "p.json:1:14: no JSON: "],
    ['{ "arms"\n: {} ', "p.json:2:6: no JSON: close brace expected"],
    ["{ // no comments\n}", "p.json:1:3: no JSON: "],
    ['{ "a": 1 } x', "p.json:1:12: no JSON: "],
    ['{ "a": nul }', "p.json:1:8: no JSON: invalid symbol"],
  ])("that are no JSON are refused: %j", (text, message) => {
    expect(refusalOf(() => parsePlan(text, "p.json"))).toMatchObject({ status: 65, message: expect.stringContaining(message) });
  });

  it("that cannot be read are refused", () => {
    const folder = mkdtempSync(join(tmpdir(), "mkvm-ab-"));
    expect(refusalOf(() => readPlanFile(join(folder, "none.json")))).toMatchObject({
      status: 66,
      message: expect.stringMatching(/: no such file$/),
    });
    expect(refusalOf(() => readPlanFile(folder))).toMatchObject({
      status: 66,
      message: expect.stringMatching(/: it is a folder$/),
    });
    writeFileSync(join(folder, "plan.json"), `\uFEFF${JSON.stringify(good)}`);
    expect(readPlanFile(join(folder, "plan.json"))).toMatchObject({ directory: folder, plan: { rounds: 10, clock: "wall" } });
  });

  it("have a published schema", async () => {
    await expect(`${JSON.stringify(planJsonSchema(), null, 2)}\n`).toMatchFileSnapshot("../public/schemas/plan.json");
    await expect(`${JSON.stringify(resultJsonSchema(), null, 2)}\n`).toMatchFileSnapshot("../public/schemas/result.json");
  });
});

describe("thresholds", () => {
  const names = ["time", "exits", "io_exits", "halt_wait_hist.count"];

  it("fit what there is, quantiles of histograms included", () => {
    for (const metric of ["time", "*exits", "halt_wait_hist.p99"])
      checkThresholds([{ metric, worse: "higher", percent: 5 }], names);
    checkThresholds(undefined, names);
  });

  it("on a metric that there is not name the nearest", () => {
    const thresholds = [{ metric: "exit", worse: "higher", percent: 5 } as const];
    expect(refusalOf(() => checkThresholds(thresholds, names))).toMatchObject({
      status: 65,
      message: 'thresholds[0].metric: no metric is called "exit"; the nearest are exits, time, io_exits',
    });
  });

  it.each([
    ["exits:+5%", { metric: "exits", worse: "higher", percent: 5 }],
    ["halt_wait_hist.p99:+100", { metric: "halt_wait_hist.p99", worse: "higher", absolute: 100 }],
    ["work:-2.5%", { metric: "work", worse: "lower", percent: 2.5 }],
  ])("as a flag: %s", (word, threshold) => {
    expect(parseThreshold(word)).toEqual(threshold);
  });

  it.each(["exits", "exits:5%", ":+5%", "exits:+%", "exits:+5 %"])("as a flag are refused: %s", (word) => {
    expect(refusalOf(() => parseThreshold(word))).toMatchObject({ status: 64 });
  });
});

function refusalOf(action: () => unknown): unknown {
  try {
    action();
  } catch (thrown) {
    return thrown;
  }
  return undefined;
}

function asMatcher(message: string | RegExp): unknown {
  return typeof message === "string" ? message : expect.stringMatching(message);
}
