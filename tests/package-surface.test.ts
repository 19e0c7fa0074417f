import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";

const published = ["kvm-abi", "hw-x86", "vac", "kvm-v1", "kvm-v2", "host", "vmm"];
const packages = join(import.meta.dirname, "..", "packages");

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
  const manifest = JSON.parse(readFileSync(join(packages, name, "package.json"), "utf8"));
  expect(Object.keys(manifest.exports)).toEqual([".", "./package.json"]);
});

test.each(published)("the tarball of @mkvm/%s holds its build, license and readme", (name) => {
  const folder = mkdtempSync(join(tmpdir(), "mkvm-pack-"));
  const listing = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts", "--pack-destination", folder], {
    cwd: join(packages, name),
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const result = JSON.parse(listing);
  const [{ files }] = Array.isArray(result) ? result : (Object.values(result) as { files: { path: string }[] }[]);
  const paths = (files as { path: string }[]).map((file) => file.path);
  expect(paths).toEqual(expect.arrayContaining(["LICENSE", "README.md", "package.json", "dist/index.js", "dist/index.d.ts"]));
  expect(paths.filter((path) => path.startsWith("src/") || path.startsWith("test/"))).toEqual([]);
});

test.each(["kvm-v1", "kvm-v2"])("@mkvm/%s bundles what it needs: nothing of ours is imported at run time", (name) => {
  const built = readFileSync(join(packages, name, "dist", "index.js"), "utf8");
  expect(built).not.toMatch(/from\s*["']@mkvm\//);
  expect(built).not.toMatch(/from\s*["']node:/);
});
