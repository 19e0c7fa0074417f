/** Runs every test and ends with one line: how many passed, how many failed. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const report = join(mkdtempSync(join(tmpdir(), "mkvm-test-")), "report.json");
const node = process.execPath;
const bin = (name: string) => join("node_modules", name);

/** One check that is not vitest's: a command that must succeed. */
function check(name: string, script: string, ...args: string[]): boolean {
  const { status } = spawnSync(node, [script, ...args], { stdio: "inherit" });
  if (status !== 0) console.log(`failed: ${name}`);
  return status === 0;
}

const checks = [
  check("lint and format", bin("@biomejs/biome/bin/biome"), "ci", "."),
  check("types", bin("turbo/bin/turbo"), "run", "typecheck", "--output-logs=errors-only"),
  check("API reports", join("scripts", "api-reports.ts")),
  check("ABI since the last release", join("scripts", "abi-check.ts")),
  check("reference", join("scripts", "reference.ts")),
  check("types of scripts and tests", bin("typescript/bin/tsc"), "-p", "."),
];
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
