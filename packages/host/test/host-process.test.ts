/** A process that is to be a host has as many of V8's background threads as serve it, and threads that take the processor from no other. */
import { execFileSync, spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { describe, expect, test } from "vitest";

const module = new URL("../src/host-process.ts", import.meta.url).href;
const program = `
  const { becomeHostProcess } = await import(${JSON.stringify(module)});
  becomeHostProcess();
  const { readdirSync, readFileSync } = await import("node:fs");
  const { Worker } = await import("node:worker_threads");
  const threads = readdirSync("/proc/self/task").filter((task) => readFileSync("/proc/self/task/" + task + "/comm", "utf8").includes("V8Worker"));
  const worker = new Worker("setInterval(() => {}, 1000); (await import('node:worker_threads')).parentPort.postMessage('here')", { eval: true });
  await new Promise((resolve) => worker.once("message", resolve));
  const policies = readdirSync("/proc/self/task").map((task) => readFileSync("/proc/self/task/" + task + "/stat", "latin1").split(") ").at(-1).split(" ")[38]);
  console.log(JSON.stringify({ threads: threads.length, policies: [...new Set(policies)], words: process.execArgv.filter((word) => word.startsWith("--v8")), rest: process.argv.slice(1), input: readFileSync(0, "utf8") }));
  process.exit();
`;
const batch = "3";
const idle = "5";

function run(nodeWords: readonly string[], environment: NodeJS.ProcessEnv = {}, under: readonly string[] = []) {
  const words = [...under, process.execPath, ...nodeWords, "--input-type=module", "--eval", program, "--", "a b", "c"];
  const text = execFileSync(words[0]!, words.slice(1), {
    encoding: "utf8",
    input: "said",
    env: { ...process.env, NODE_OPTIONS: "", ...environment },
  });
  return JSON.parse(text) as { threads: number; policies: string[]; words: string[]; rest: string[]; input: string };
}
const best = Math.max(2, availableParallelism() >> 1);
const namesThreads = readdirSync("/proc/self/task").some((task) =>
  readFileSync(`/proc/self/task/${task}/comm`, "utf8").includes("V8Worker"),
);
const hasChrt = spawnSync("chrt", ["--version"]).status === 0;

describe("becomeHostProcess", () => {
  test("starts the process anew, with its arguments and its input", () => {
    const { threads, words, rest, input } = run([]);
    expect(words).toEqual([`--v8-pool-size=${best}`]);
    if (namesThreads) expect(threads).toBe(best);
    expect(rest).toEqual(["a b", "c"]);
    expect(input).toBe("said");
  });
  test("leaves alone what was chosen", () => {
    expect(run(["--v8-pool-size=3"]).words).toEqual(["--v8-pool-size=3"]);
    expect(run([], { NODE_OPTIONS: "--v8-pool-size=3" }).words).toEqual([]);
  });
  test.skipIf(!hasChrt)("puts its threads under SCHED_BATCH, those that there are and those that come", () => {
    expect(run([]).policies).toEqual([batch]);
    expect(run(["--v8-pool-size=3"]).policies).toEqual([batch]);
  });
  test.skipIf(!hasChrt)("leaves a policy alone that was chosen", () => {
    expect(run([], {}, ["chrt", "--idle", "0"]).policies).toEqual([idle]);
  });
  test("does without chrt", () => {
    expect(run([], { PATH: "" }).words).toEqual([`--v8-pool-size=${best}`]);
  });
});
