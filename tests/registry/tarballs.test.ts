/** What would be published, looked at as its users' tools do. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { isBuiltin } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkPackage, createPackageFromTarballData } from "@arethetypeswrong/core";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import semver from "semver";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { succeed } from "./commands.ts";
import { type Manifest, workspace } from "./workspace-release.ts";

const packages = join(workspace, "packages");
const manifestOf = (name: string): Manifest => JSON.parse(readFileSync(join(packages, name, "package.json"), "utf8"));
const published = readdirSync(packages).filter((name) => !manifestOf(name).private);

const folder = mkdtempSync(join(tmpdir(), "mkvm-tarballs-"));
const tarballs = new Map<string, string>();

beforeAll(async () => {
  for (const name of published) {
    const pack = ["pack", "--json", "--pack-destination", folder];
    const said = await succeed(join(workspace, "node_modules", ".bin", "pnpm"), pack, { cwd: join(packages, name) });
    tarballs.set(name, JSON.parse(said).filename);
  }
}, 400_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const tarballOf = (name: string): Buffer => readFileSync(tarballs.get(name) as string);
const listing = (name: string): string[] =>
  execFileSync("tar", ["-tzf", tarballs.get(name) as string], { encoding: "utf8" })
    .trim()
    .split("\n");
const packed = (name: string, path: string): string =>
  execFileSync("tar", ["-xzOf", tarballs.get(name) as string, `package/${path}`], { encoding: "utf8", maxBuffer: 1 << 28 });

describe.each(published)("@mkvm/%s", (name) => {
  test("publint finds nothing", async () => {
    const data = tarballOf(name);
    const { messages, pkg } = await publint({
      pack: { tarball: data.buffer.slice(data.byteOffset, data.byteOffset + data.length) as ArrayBuffer },
      strict: true,
    });
    expect(messages.map((message) => formatMessage(message, pkg ?? {}))).toEqual([]);
  });

  test("its types resolve as its code does", async () => {
    const result = await checkPackage(createPackageFromTarballData(new Uint8Array(tarballOf(name))));
    if (!result.types) throw new Error("no types in the tarball");
    // ES modules only: require() of them works on every Node.js that is claimed, and node10 resolution has no exports
    const known = new Set(["CJSResolvesToESM", "NoResolution"]);
    const problems = result.problems.filter(
      (problem) =>
        !(
          problem.kind === "CJSResolvesToESM" ||
          (known.has(problem.kind) && "resolutionKind" in problem && problem.resolutionKind === "node10")
        ),
    );
    expect(problems).toEqual([]);
  });

  test("holds its build, ABI report, readme, changelog and license, and no source", () => {
    const allowed =
      /^package\/(package\.json|README\.md|CHANGELOG\.md|LICENSE|dist\/[\w./-]+\.(js|d\.ts|wasm|json)|etc\/[\w-]+\.abi\.json)$/;
    const files = listing(name);
    expect(files.filter((file) => !allowed.test(file))).toEqual([]);
    expect(files).toEqual(
      expect.arrayContaining([
        "package/LICENSE",
        "package/README.md",
        "package/dist/index.js",
        "package/dist/index.d.ts",
        `package/etc/${name}.abi.json`,
      ]),
    );
  });

  test("contains nothing of another package, but what a module compiles in", () => {
    // Headers, as it were, and what is private and has no package of its own
    const compiledIn = manifestOf(name).mkvm ? ["kvm-abi", "kvm-core"] : [];
    const owners = new Set<string>();
    for (const file of listing(name).filter((path) => path.endsWith(".js"))) {
      // The bundler heads each part with its file, from the package's folder
      const heads = packed(name, file.replace("package/", "")).matchAll(/^\/\/ ((?:src|\.\.|node_modules)\/[\w@./+-]+)$/gm);
      for (const [, path = ""] of heads) owners.add(path.startsWith("src/") ? name : (path.split("/")[1] as string));
    }
    expect(owners).toContain(name);
    expect([...owners].filter((owner) => owner !== name && !compiledIn.includes(owner))).toEqual([]);
  });

  test("depends on published versions, and on no private package", () => {
    const manifest: Manifest = JSON.parse(packed(name, "package.json"));
    const names = new Set(published.map((other) => `@mkvm/${other}`));
    for (const field of ["dependencies", "peerDependencies", "optionalDependencies"]) {
      for (const [dependency, range] of Object.entries((manifest[field] ?? {}) as Record<string, string>)) {
        expect(semver.validRange(range), `${field}.${dependency} ${range}`).not.toBeNull();
        if (dependency.startsWith("@mkvm/")) expect(names).toContain(dependency);
      }
    }
  });

  test("says which Node.js it needs, or none when it imports nothing of Node's", () => {
    const manifest: Manifest = JSON.parse(packed(name, "package.json"));
    const code = listing(name)
      .filter((file) => file.endsWith(".js"))
      .map((file) => packed(name, file.replace("package/", "")))
      .join("\n");
    const imports = code.matchAll(/(?:^|[;}\s])(?:from|import)\s*\(?\s*["']([^"'\n]+)["']/g);
    const usesNode = [...imports].some(([, specifier]) => isBuiltin(specifier as string));
    expect(manifest.engines !== undefined, "engines").toBe(usesNode);
  });
});
