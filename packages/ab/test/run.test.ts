import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkGuest, findLinuxGuest } from "@mkvm/testkit";
import { parse } from "parse5";
import { describe, expect, it } from "vitest";
import { compare } from "../src/compare.ts";
import { resultSchema } from "../src/report/result.ts";
import { busy, directory, folder, image, mkvmAb, planOf, slowKvm } from "./comparison.ts";

const metricOf = (result: Awaited<ReturnType<typeof compare>>, name: string) =>
  result.comparisons.find(({ metric }) => metric === name)!;

describe("a run", () => {
  it("of two modules under icount compares single values, and repeats bit for bit", async () => {
    const plan = planOf({
      arms: { a: { module: "@mkvm/kvm-v1", parameters: { exit_latency: true } }, b: { module: "@mkvm/kvm-v2" } },
    });
    const [first, second] = [await compare(plan, { directory }), await compare(plan, { directory })];
    expect(first).toMatchObject({ complete: true, verdict: "same", exitStatus: 0, seed: 1 });
    expect(metricOf(first, "exit_io_instruction")).toMatchObject({
      a: { median: 202 },
      b: { median: 202 },
      method: "equal-rounds",
    });
    expect(metricOf(first, "instructions").a.median).toBeGreaterThan(200 * 1000);
    expect(first.onlyOn.a).toContain("exit_latency_io_instruction.p99");
    const counted = ({ values: { cpu_time: _, ...values } }: { values: Record<string, number> }) => values;
    expect(second.rounds.map(counted)).toEqual(first.rounds.map(counted));
    expect(resultSchema.parse(JSON.parse(JSON.stringify(first)))).toEqual(first);
  });

  it("finds more exits of an arm, and fails for it", async () => {
    const b = { module: slowKvm, parameters: { extra_exit_ns: 100_000 } };
    const result = await compare(planOf({ arms: { a: { module: slowKvm }, b } }), { directory });
    expect(metricOf(result, "exits")).toMatchObject({ verdict: "regressed" });
    expect(metricOf(result, "exit_io_instruction").shift).toBe(0);
    expect(result.exitStatus).toBe(1);
  });

  it("moves VMs to the other arm and back, and measures the blackout", async () => {
    const workload = {
      ...planOf().workload,
      kernel: image("check.bin", checkGuest(30)),
      format: "flat64",
      start: "reached",
      end: "check-end",
    };
    const plan = planOf({
      workload: workload as never,
      warmUp: 1,
      moves: [0.2, 0.4, 0.6, 0.8],
      thresholds: [{ metric: "blackout", percent: 1000 }],
    });
    const result = await compare(plan, { directory });
    expect(result).toMatchObject({ complete: true });
    expect(metricOf(result, "blackout").a.median).toBeGreaterThan(0);
  });

  it("on the wall clock runs arms at once too", async () => {
    const result = await compare(
      planOf({ clock: "wall", schedule: "concurrent", thresholds: [{ metric: "exit_io_instruction", percent: 5 }] }),
      { directory },
    );
    // What two arms come to that run at once on the wall clock is the machine's to say as well: verdicts are asked for under icount
    expect(result).toMatchObject({ complete: true });
    for (const { values } of result.rounds) expect(values.exit_io_instruction).toBeGreaterThan(0);
    expect(new Set(result.rounds.map(({ cpu }) => cpu))).toEqual(new Set([0, 1]));
  });

  it("of a script inside Linux measures the script, and fails with it", { timeout: 400_000 }, async () => {
    const linux = await findLinuxGuest({ log: console.log });
    if (!linux) {
      if (process.env.CI) throw new Error("CI must run Linux: no kernel could be had from the cache or the package manager");
      return console.log("no Linux here: run on Debian, or fill the cache folder");
    }
    const script = join(folder, "load.sh");
    const workload = {
      kind: "script",
      kernel: linux.kernel,
      initrd: linux.initrd,
      script,
      append: "console=ttyS0 panic=-1 quiet",
    } as const;
    writeFileSync(script, "md5sum /mkvm-ab-script\n");
    const result = await compare(planOf({ workload, thresholds: [{ metric: "instructions", percent: 5 }] }), { directory });
    expect(result).toMatchObject({ complete: true, verdict: "same" });
    writeFileSync(script, "exit 7\n");
    expect((await compare(planOf({ workload }), { directory })).failure).toMatchObject({
      reason: "its script ended with status 7",
    });
  });
});

describe("reports", () => {
  it("say the same in every form, and the page needs nothing else", async () => {
    const at = (name: string) => join(folder, name);
    const plan = at("plan.json");
    writeFileSync(
      plan,
      JSON.stringify(
        planOf({
          name: "a <b> & 'c'",
          thresholds: [
            { metric: "exits", percent: 5 },
            { metric: "kernel_memory", worse: "lower", percent: 0 },
          ],
        }),
      ),
    );
    const files = ["--json", at("r.json"), "--junit", at("r.xml"), "--html", at("r.html")];
    const words = ["run", plan, "--a", slowKvm, "--b", slowKvm, "--b-param", "extra_exit_ns=100000", ...files];
    const { status, stdout, stderr } = await mkvmAb(...words);
    expect({ status, stderr }).toEqual({ status: 1, stderr: "mkvm ab: seed 1\n" });
    expect(stdout).toMatch(/^exits +\d+ +\d+ +\+[\d.]+ % .* regressed$/m);
    expect(stdout).toMatch(/^regressed: 1 regressed \(exits\), 1 same; corrected by holm, alpha 0.05$/m);

    const result = resultSchema.parse(JSON.parse(readFileSync(at("r.json"), "utf8")));
    expect(result.verdict).toBe("regressed");
    const xml = readFileSync(at("r.xml"), "utf8");
    expect(xml).toContain('<testsuites tests="2" failures="1" errors="0" skipped="0">');
    expect(xml).toMatch(/name="a &lt;b(&gt;|>) &amp; 'c'"/);

    const html = readFileSync(at("r.html"), "utf8");
    const problems: string[] = [];
    parse(html, { onParseError: ({ code }) => problems.push(code) });
    expect(problems).toEqual([]);
    expect(html.match(/<svg/g)).toHaveLength(2 * 2 + 1);
    expect(html).not.toMatch(/<script|<link|<img|<iframe|@import|url\(|(?:href|src)=/i);
    expect(html.replaceAll(/xmlns(?::xlink)?="[^"]*"/g, "")).not.toMatch(/https?:/);
    expect(html).toContain("prefers-color-scheme: dark");
    expect(html).toContain("a &lt;b&gt; &amp; &#39;c&#39;");
    expect(html).not.toMatch(/NaN|undefined|Infinity/);
  });

  it("come as JSON alone on standard output", async () => {
    const words = [
      "run",
      "--a",
      slowKvm,
      "--b",
      slowKvm,
      "--kernel",
      busy,
      "--format",
      "flat32",
      "--memory",
      "16M",
      "--start",
      "<",
      "--end",
      ">",
    ];
    const { status, stdout } = await mkvmAb(...words, "--clock", "icount", "--rounds", "2", "--warm-up", "0", "--json", "-");
    expect(status).toBe(0);
    expect(resultSchema.parse(JSON.parse(stdout))).toMatchObject({ verdict: "same", kind: "run" });
  });
});

describe("what fails half-way", () => {
  const crash = image("crash.bin", Uint8Array.of(0xba, 0xf8, 3, 0, 0, 0xb0, 60, 0xee, 0x0f, 0x01, 0x1d, 0, 6, 0, 0, 0xcc)); // "<"; lidt; int3
  const mute = image("mute.bin", Uint8Array.of(0xf4, 0xeb, 0xfd));
  const workload = planOf().workload;

  it.each([
    [
      "a guest that crashes",
      { ...planOf().arms, b: { module: "@mkvm/kvm-v2", kernel: crash } },
      {},
      /^it ended with status 4 before ">": vCPU 0: triple fault at /,
    ],
    [
      "a guest without markers",
      { ...planOf().arms, b: { module: "@mkvm/kvm-v2", kernel: mute } },
      { timeoutS: 0.5 },
      /^no "<" on its console within 0\.5 s; its console is empty$/,
    ],
    [
      "a module that throws",
      { a: { module: slowKvm }, b: { module: slowKvm, parameters: { throw_after: 50 } } },
      {},
      // What it threw is in the kernel log; the VM gets an exit that says so
      /^it ended with status 6 before ">": vCPU 0: KVM internal error \(.*\) at /,
    ],
  ])("%s is told in a line, with what there is", async (_, arms, over, reason) => {
    const result = await compare(planOf({ ...over, arms, workload }), { directory });
    expect(result).toMatchObject({ complete: false, exitStatus: 3, failure: { arm: "b", round: 1 } });
    expect(result.failure!.reason).toMatch(reason);
    expect(result.failure!.reason).not.toContain("\n");
  });

  it("in a later round leaves the rounds before", async () => {
    const arms = { a: { module: slowKvm }, b: { module: slowKvm, parameters: { throw_after: 500 } } };
    const result = await compare(planOf({ arms, clock: "wall", rounds: 6 }), { directory });
    expect(result).toMatchObject({ complete: false, exitStatus: 3, failure: { arm: "b", round: 3 } });
    expect(result.rounds).toHaveLength(4);
    expect(result.comparisons.length).toBeGreaterThan(0);
  });

  it("or is interrupted stops the VM, and leaves the rounds before", async () => {
    const controller = new AbortController();
    const onProgress = (done: number) => done === 5 && controller.abort();
    const result = await compare(planOf({ rounds: 50, clock: "wall" }), { directory, signal: controller.signal, onProgress });
    expect(result).toMatchObject({ complete: false, interrupted: true, exitStatus: 130 });
    expect(result.rounds).toHaveLength(4);
  });
});

describe("bad input", () => {
  const flags = [
    "--kernel",
    busy,
    "--format",
    "flat32",
    "--memory",
    "16M",
    "--start",
    "<",
    "--end",
    ">",
    "--clock",
    "icount",
    "--rounds",
    "2",
  ];
  const arms = ["--a", slowKvm, "--b", slowKvm];
  const bad = join(folder, "bad.json");
  writeFileSync(bad, '{\n  "arms": 5\n');

  it.each([
    [["run"], 64, "--a is missing: give it, or a plan"],
    [["run", ...arms, "--kernel", busy], 64, "--end is missing: say by what text on the console the workload has ended"],
    [["run", ...arms, ...flags, "--rounds", "many"], 64, "--rounds many: give a number"],
    [["run", ...arms, ...flags, "--rounds", "1"], 64, /^rounds: /],
    [["run", ...arms, ...flags, "--threshold", "exits"], 64, /^--threshold exits: write metric:\+N% or metric:\+N/],
    [["run", ...arms, ...flags, "--b-param", "x"], 64, "'x' is no parameter: write name=value"],
    [["run", "/nowhere/plan.json"], 66, "plan /nowhere/plan.json cannot be read: no such file"],
    [["run", bad], 65, `${bad}:3:1: no JSON: close brace expected`],
    [["run", ...arms, ...flags, "--kernel", "/nowhere/kernel"], 66, "kernel /nowhere/kernel: no such file"],
    [
      ["run", "--a", "@mkvm/kvm-v99", "--b", slowKvm, ...flags],
      69,
      /^arm a \(@mkvm\/kvm-v99\) cannot be loaded: package @mkvm\/kvm-v99 is not installed: /,
    ],
    [
      ["run", ...arms, ...flags, "--b-param", "speed=1"],
      69,
      /^arm b \(.*slow-kvm\) cannot be loaded: slow-kvm has no parameter 'speed': /,
    ],
    [
      ["run", ...arms, ...flags, "--threshold", "exists:+5%"],
      65,
      /^thresholds\[0\]\.metric: no metric is called "exists"; the nearest are exits, /,
    ],
    [
      ["run", ...arms, ...flags, "--html", "/nowhere/r.html"],
      73,
      "--html /nowhere/r.html cannot be written: its folder does not exist",
    ],
    [["live", "--from", "kvm1", "--to", "kvm2", "--for", "0"], 64, "--for 0: give seconds, up to a day"],
  ])("%j is refused in a line", async (words, status, message) => {
    const { stdout, stderr, ...ended } = await mkvmAb(...words, "--quiet");
    expect({ ...ended, stdout }).toEqual({ status, stdout: "" });
    expect(stderr).toMatch(/^mkvm ab: [^\n]*\n$/);
    const said = stderr.slice("mkvm ab: ".length, -1);
    if (typeof message === "string") expect(said).toBe(message);
    else expect(said).toMatch(message);
  });

  it("of an unknown command or flag is refused as such", async () => {
    expect(await mkvmAb("walk")).toMatchObject({ status: 64 });
    expect(await mkvmAb("run", "--frob")).toMatchObject({ status: 64 });
    expect(await mkvmAb("run", "--help")).toMatchObject({ status: 0 });
  });
});
