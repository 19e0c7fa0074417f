import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const packages = join(import.meta.dirname, "..", "packages");
const published = readdirSync(packages).filter(
  (name) => !JSON.parse(readFileSync(join(packages, name, "package.json"), "utf8")).private,
);

test.each(published)("the example in the README of @mkvm/%s prints what it says", (name) => {
  const readme = join(packages, name, "README.md");
  expect(existsSync(readme)).toBe(true);
  const examples = [...readFileSync(readme, "utf8").matchAll(/```js\n(.*?)```/gs)].map((match) => match[1]);
  expect(examples).toHaveLength(1);
  const expected = [...examples[0].matchAll(/^\/\/ prints: (.*)$/gm)].map((match) => match[1]);
  expect(expected.length).toBeGreaterThan(0);
  // Where it resolves packages as a user's project does, and nobody who lists the files of this repository sees it
  const scripts = join(import.meta.dirname, "node_modules", ".readme-examples");
  mkdirSync(scripts, { recursive: true });
  const script = join(scripts, `${name}.mjs`);
  writeFileSync(script, examples[0]);
  try {
    const said = execFileSync(process.execPath, [script], { cwd: import.meta.dirname, encoding: "utf8" });
    expect(said.trim().split("\n")).toEqual(expected);
  } finally {
    rmSync(script);
  }
});
