/** A process that is to be a host has as many of V8's background threads as serve it. */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { describe, expect, test } from "vitest";

const pool = new URL("../src/v8-pool.ts", import.meta.url).href;
const program = `
  const { restartWithV8Pool } = await import(${JSON.stringify(pool)});
  const { pid } = process;
  restartWithV8Pool();
  const { readdirSync, readFileSync } = await import("node:fs");
  const threads = readdirSync("/proc/self/task").filter((task) => readFileSync("/proc/self/task/" + task + "/comm", "utf8").includes("V8Worker"));
  console.log(JSON.stringify({ threads: threads.length, words: process.execArgv.filter((word) => word.startsWith("--v8")), rest: process.argv.slice(1), input: readFileSync(0, "utf8") }));
`;

function run(nodeWords: readonly string[], environment: NodeJS.ProcessEnv = {}) {
  const words = [...nodeWords, "--input-type=module", "--eval", program, "--", "a b", "c"];
  const text = execFileSync(process.execPath, words, {
    encoding: "utf8",
    input: "said",
    env: { ...process.env, NODE_OPTIONS: "", ...environment },
  });
  return JSON.parse(text) as { threads: number; words: string[]; rest: string[]; input: string };
}
const best = Math.max(2, availableParallelism() >> 1);
const namesThreads = readdirSync("/proc/self/task").some((task) =>
  readFileSync(`/proc/self/task/${task}/comm`, "utf8").includes("V8Worker"),
);

describe("restartWithV8Pool", () => {
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
});
