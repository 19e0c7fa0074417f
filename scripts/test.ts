/** Runs every test and ends with one line: how many passed, how many failed. */
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findFirmware, findLinuxGuest, findUefiFirmware } from "@mkvm/testkit";

const report = join(mkdtempSync(join(tmpdir(), "mkvm-test-")), "report.json");
const node = process.execPath;
const bin = (name: string) => join("node_modules", name);

/** One check that is not vitest's: a command that must succeed. What it says comes when it has ended. */
function check(name: string, script: string, ...args: string[]): Promise<boolean> {
  return new Promise((resolve) => {
    const child = spawn(node, [script, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    const said: Uint8Array[] = [];
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes) => said.push(bytes));
    child.on("close", (status) => {
      process.stdout.write(Buffer.concat(said));
      if (status !== 0) console.log(`failed: ${name}`);
      resolve(status === 0);
    });
  });
}

/** One after the other, beside the other lanes. */
async function lane(...checks: (() => Promise<boolean>)[]): Promise<boolean[]> {
  const outcomes: boolean[] = [];
  for (const each of checks) outcomes.push(await each());
  return outcomes;
}

const lanes = await Promise.all([
  lane(
    () => check("types", bin("turbo/bin/turbo"), "run", "typecheck", "--output-logs=errors-only"),
    () => check("lint and format", bin("@biomejs/biome/bin/biome"), "ci", "."),
  ),
  lane(
    () => check("API reports", join("scripts", "api-reports.ts")),
    () => check("ABI since the last release", join("scripts", "abi-check.ts")),
    () => check("reference", join("scripts", "reference.ts")),
    () => check("types of scripts and tests", bin("typescript/bin/tsc"), "-p", "."),
  ),
  // What several files need is fetched once, before they run beside each other
  findLinuxGuest({ log: console.log })
    .then(() => findFirmware(console.log))
    .then(() => findUefiFirmware(console.log)),
]);
const checks = [...lanes[0], ...lanes[1]];
spawnSync(
  node,
  [
    bin("vitest/vitest.mjs"),
    "run",
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${report}`,
    ...process.argv.slice(2),
  ],
  {
    stdio: "inherit",
  },
);

let passed = checks.filter(Boolean).length;
let failed = checks.length - passed;
let skipped = 0;
try {
  const result = JSON.parse(readFileSync(report, "utf8"));
  passed += result.numPassedTests;
  failed +=
    result.numFailedTests +
    (result.testResults as { status: string; assertionResults: unknown[] }[]).filter(
      (file) => file.status === "failed" && file.assertionResults.length === 0,
    ).length;
  skipped = result.numPendingTests;
  if (result.numTotalTests === 0) failed++;
} catch {
  console.log("failed: the test runner left no report");
  failed++;
}
process.exitCode = failed ? 1 : 0;
console.log(`${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`);
