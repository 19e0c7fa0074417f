import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const packages = join(import.meta.dirname, "..", "packages");
const manifestOf = (name: string) => JSON.parse(readFileSync(join(packages, name, "package.json"), "utf8"));
const published = readdirSync(packages).filter((name) => !manifestOf(name).private);

test.each(published)("@mkvm/%s cannot be imported deeper than its exports", async (name) => {
  await expect(import(/* @vite-ignore */ `@mkvm/${name}/dist/index.js`)).rejects.toThrow();
  const code = `import("@mkvm/${name}/dist/index.js").then(() => console.log("imported"), (error) => console.log(error.code))`;
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", code], {
    cwd: import.meta.dirname,
    encoding: "utf8",
  });
  expect(said.trim()).toBe("ERR_PACKAGE_PATH_NOT_EXPORTED");
});

test.each(published)("@mkvm/%s exports itself and its package.json, no more", (name) => {
  expect(Object.keys(manifestOf(name).exports)).toEqual([".", "./package.json"]);
});

test.each(["kvm-v1", "kvm-v2"])("@mkvm/%s bundles what it needs: nothing of ours is imported at run time", (name) => {
  const built = readFileSync(join(packages, name, "dist", "index.js"), "utf8");
  expect(built).not.toMatch(/from\s*["']@mkvm\//);
  expect(built).not.toMatch(/from\s*["']node:/);
});
