/**
 * Shows what `mkvm ab` is worth, with real runs: plans that compare a module with itself must find nothing, plans with a planted
 * regression of 5 % must find it, in at least 95 of 100 each. Planted under icount: packages/ab/test/fixtures/slow-kvm, which is
 * kvm-v1 with 5 % more VM exits. Planted on the wall clock: arm B's guest does 5 % more work, and only CPU time is judged, so that
 * nothing that can be counted gives it away; real time itself depends on who else is on the machine. Every plan has a seed of its
 * own, from --seed, and under icount a guest of its own.
 *
 * On the wall clock guests are interpreted: compilers lay each VM's translated code out anew, which moves its time from run to run by
 * more than what is looked for, and the rounds would go on averaging that out. For the same reason everything then runs on one CPU:
 * threads of this process on the other hyperthread of a core would slow the guest whenever they have something to do.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compare, type PlanInput, type Result } from "@mkvm/ab";
import { createRandom, type Random } from "../packages/ab/src/run/random.ts";
import { busyGuest } from "../packages/ab/test/guests/busy-guest.ts";

const { values } = parseArgs({
  options: {
    plans: { type: "string", default: "100" },
    clock: { type: "string", default: "icount,wall" },
    seed: { type: "string", default: String(Date.now() % 2 ** 31) },
  },
});
const plans = Number(values.plans);
const seed = Number(values.seed);
const leastShare = 0.95;
const plantedShare = 0.05;

const directory = join(import.meta.dirname, "..", "packages", "ab");
const folder = mkdtempSync(join(tmpdir(), "mkvm-verify-ab-"));
const module = join(directory, "test", "fixtures", "slow-kvm");
/** What one count of a guest's inner loop takes under icount. */
const nsPerCount = 20;

function guest(name: string, rounds: number, work: number): string {
  const path = join(folder, `${name}.bin`);
  writeFileSync(path, busyGuest(rounds, work));
  return path;
}

/** A small guest; `planted`: an interrupt so often that exits grow by the share. */
function icountPlan(random: Random, planted: boolean): PlanInput {
  const rounds = 400 + random.below(1200);
  const work = 300 + random.below(700);
  const extra = Math.ceil((rounds + 20) * plantedShare) + 2;
  const extra_exit_ns = Math.floor((rounds * work * nsPerCount) / extra);
  return {
    arms: { a: { module }, b: { module, ...(planted && { parameters: { extra_exit_ns } }) } },
    workload: workload(guest("icount", rounds, work)),
    clock: "icount",
    rounds: 2,
    warmUp: 0,
    seed: random.below(2 ** 31),
    thresholds: ["time", "*instructions", "kernel_memory", "exits", "*_exits", "exit_*", "pf_*", "mmu_*", "pages_*"].map(
      (metric) => ({
        metric,
        percent: 5,
      }),
    ),
  };
}

function wallPlan(random: Random, planted: boolean): PlanInput {
  const [rounds, work] = [100, 600_000];
  const b = planted ? { kernel: guest("wall-planted", rounds, work * (1 + plantedShare)) } : {};
  return {
    arms: { a: { module }, b: { module, ...b } },
    workload: workload(guest("wall", rounds, work)),
    clock: "wall",
    rounds: 12,
    maxRounds: 400,
    warmUp: 2,
    seed: random.below(2 ** 31),
    thresholds: [{ metric: "cpu_time", percent: 2.5 }],
  };
}

function workload(kernel: string): PlanInput["workload"] {
  return { kind: "image", kernel, format: "flat32", memory: "16M", start: "<", end: ">" };
}

/** Plans of one kind; true when enough of them came out as they must. */
async function verify(clock: "icount" | "wall", planted: boolean): Promise<boolean> {
  const random = createRandom(seed, (clock === "wall" ? 2 : 0) + (planted ? 1 : 0));
  const verdicts = new Map<string, number>();
  let right = 0;
  let metrics = 0;
  let rounds = 0;
  const startedMs = performance.now();
  for (let index = 0; index < plans; index++) {
    const plan = (clock === "icount" ? icountPlan : wallPlan)(random, planted);
    const result = await compare(plan, { directory });
    if (!result.complete) throw new Error(`plan ${index}: ${JSON.stringify(result.failure)}`);
    metrics = result.comparisons.filter(({ verdict }) => verdict !== undefined).length;
    rounds += result.rounds.length / 2;
    verdicts.set(result.verdict, (verdicts.get(result.verdict) ?? 0) + 1);
    if (planted ? found(result, clock) : isClean(result)) right++;
    else console.log(`  plan ${index} (seed ${plan.seed}): ${alarms(result)}`);
  }
  const minutes = ((performance.now() - startedMs) / 60_000).toFixed(1);
  const what = planted ? "planted regression found" : "A/A clean";
  const all = [...verdicts].map(([verdict, count]) => `${count} ${verdict}`).join(", ");
  console.log(
    `${clock}: ${what} in ${right} of ${plans}; ${metrics} metrics judged in each, ${(rounds / plans).toFixed(0)} rounds; verdicts: ${all}; ${minutes} minutes`,
  );
  return right >= plans * leastShare;
}

/** All threads, and those that come, on the last CPU: the first has most of a machine's interrupts. */
function stayOnOneCpu(): void {
  execFileSync("taskset", ["-acp", String(cpus().length - 1), String(process.pid)], { stdio: ["ignore", "ignore", "inherit"] });
}

/** No alarm, in either direction: that the machine was too noisy to say more is none. */
function isClean(result: Result): boolean {
  return result.comparisons.every(({ verdict }) => verdict !== "regressed" && verdict !== "improved");
}

function found(result: Result, clock: "icount" | "wall"): boolean {
  const metric = clock === "icount" ? "exits" : "cpu_time";
  return (
    result.exitStatus === 1 && result.comparisons.some((found) => found.metric === metric && found.verdict === "regressed")
  );
}

function alarms(result: Result): string {
  const judged = result.comparisons.filter(({ verdict }) => verdict !== undefined && verdict !== "same");
  return (
    judged.map(({ metric, verdict, percent }) => `${metric} ${verdict} ${percent?.toFixed(2)} %`).join(", ") || "all the same"
  );
}

process.env.MKVM_ENGINE ??= "off";
console.log(`seed ${seed}`);
let good = true;
try {
  for (const clock of values.clock.split(",") as ("icount" | "wall")[]) {
    if (clock === "wall") stayOnOneCpu();
    for (const planted of [false, true]) good = (await verify(clock, planted)) && good;
  }
} finally {
  rmSync(folder, { recursive: true });
}
console.log(good ? "both hold" : "failed");
process.exitCode = good ? 0 : 1;
