import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";
import { chooseSeed } from "../../packages/hw-x86/test/random.ts";

const root = join(import.meta.dirname, "..", "..");

/** The short form of 'pnpm verify:ab', which has 100 of each, and the wall clock too. */
test("ten A/A plans are clean, and ten planted regressions are found", { timeout: 600_000 }, () => {
  const seed = String(chooseSeed());
  const words = [join(root, "scripts", "verify-ab.ts"), "--plans", "10", "--clock", "icount", "--seed", seed];
  const { status, stdout, stderr } = spawnSync(process.execPath, words, { cwd: root, encoding: "utf8" });
  expect({ status, stderr }, stdout).toEqual({ status: 0, stderr: "" });
  expect(stdout).toContain("A/A clean in 10 of 10");
  expect(stdout).toContain("planted regression found in 10 of 10");
});
