/** `mkvm abi check` as maintainers meet it: a copy of this workspace, with changes, git refs, changesets and a registry. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CheckOptions, type CheckResult, check } from "@mkvm/abi-gate";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { attempt, succeed } from "./commands.ts";
import { WorkspaceRelease, workspace } from "./workspace-release.ts";

let release: WorkspaceRelease;
let folder: string;
const kept = new Map<string, string | undefined>();

beforeAll(async () => {
  release = await WorkspaceRelease.create(process.env);
  folder = release.folder;
}, 400_000);
afterAll(() => release?.remove());
afterEach(() => {
  for (const [path, text] of kept) text === undefined ? rmSync(path) : writeFileSync(path, text);
  kept.clear();
});

/** Writes a file of the copy until the end of the test. */
function write(path: string, text: string): void {
  const file = join(folder, path);
  if (!kept.has(file)) kept.set(file, existsSync(file) ? readFileSync(file, "utf8") : undefined);
  writeFileSync(file, text);
}
/** Replaces text that must be there. */
function edit(path: string, was: string, is: string): void {
  const text = readFileSync(join(folder, path), "utf8");
  expect(text).toContain(was);
  write(path, text.replace(was, is));
}
function changeset(bumps: Record<string, "major" | "minor" | "patch">): void {
  const lines = Object.entries(bumps).map(([name, bump]) => `"${name}": ${bump}`);
  write(".changeset/test.md", `---\n${lines.join("\n")}\n---\n\nA change.\n`);
}
const run = (options: Partial<CheckOptions> = {}): Promise<CheckResult> =>
  check({ directory: folder, against: "HEAD", ...options });
const failed = (result: CheckResult): string => result.failures.join("\n");
const git = (...words: string[]) => succeed("git", words, { cwd: folder });

describe("against a git ref", () => {
  test("what did not change passes, and nothing is written", async () => {
    const result = await run();
    expect(result.failures).toEqual([]);
    expect(result.packages.flatMap(({ findings }) => findings)).toEqual([]);
    expect(await git("status", "--porcelain")).toBe("");
  });

  test("a break fails without a changeset, with one that is too small, and passes with one that says it", async () => {
    edit("packages/kvm-abi/dist/index.d.ts", "interface ModuleInstance {", "interface ModuleInstance {\n    suspend(): void;");
    const without = await run();
    expect(without.packages.flatMap(({ findings }) => findings.map(({ rule, subject }) => `${rule} ${subject}`))).toEqual([
      "member-added-required ModuleInstance.suspend",
    ]);
    // Below 1.0.0 a break is a minor bump
    expect(failed(without)).toBe(
      '@mkvm/kvm-abi needs a minor bump after 0.1.0 and the pending changesets give none: add a changeset with "@mkvm/kvm-abi": minor',
    );
    changeset({ "@mkvm/kvm-abi": "patch" });
    expect(failed(await run())).toContain(
      "@mkvm/kvm-abi needs a minor bump after 0.1.0 and the pending changesets give a patch one (0.1.1)",
    );
    changeset({ "@mkvm/kvm-abi": "minor" });
    expect(failed(await run())).toBe("");
  });

  test("a changed number in the built code is found", async () => {
    edit("packages/kvm-abi/dist/index.js", "KVM_EXIT_HLT: 5", "KVM_EXIT_HLT: 25");
    expect(failed(await run())).toContain("@mkvm/kvm-abi needs a minor bump");
    changeset({ "@mkvm/kvm-abi": "minor" });
    expect(failed(await run())).toBe("");
  });

  test("a break of VAC is refused whatever its changeset says, unless that is allowed by name", async () => {
    edit("packages/vac/dist/index.d.ts", "    emergencyDisable(): void;", "");
    changeset({ "@mkvm/vac": "major" });
    expect(failed(await run())).toMatch(/^@mkvm\/vac is append-only and this breaks it \(member-removed\)/);
    expect(failed(await run({ allowVacMajor: true }))).toBe("");
  });

  test("a private package's change needs a changeset for each package that carries it; its comments do not", async () => {
    const source = "packages/kvm-core/src/api/system-ioctls.ts";
    const path = existsSync(join(folder, source)) ? source : "packages/kvm-core/src/index.ts";
    write(path, `${readFileSync(join(folder, path), "utf8")}\n// A comment more.\n`);
    expect(failed(await run())).toBe("");
    const carried = "packages/kvm-core/src/portable/vm-transfer.ts";
    write(carried, `${readFileSync(join(folder, carried), "utf8")}\nglobalThis.marker = 1;\n`);
    const said = failed(await run());
    expect(said).toContain("@mkvm/kvm-v1 needs a patch bump after 0.1.0 and the pending changesets give none");
    expect(said).toContain("@mkvm/kvm-v2 needs a patch bump after 0.1.0 and the pending changesets give none");
    expect(said).not.toContain("@mkvm/host needs");
    changeset({ "@mkvm/kvm-v1": "patch", "@mkvm/kvm-v2": "patch" });
    expect(failed(await run())).toBe("");
  });

  test("what leaks out of a package fails", async () => {
    const path = "packages/kvm-v1/dist/index.d.ts";
    const clean = readFileSync(join(folder, path), "utf8");
    changeset({ "@mkvm/kvm-v1": "minor" });
    write(path, `import { VmTransfer } from "@mkvm/kvm-core";\n${clean}`);
    expect(failed(await run())).toContain("@mkvm/kvm-v1: its declarations names @mkvm/kvm-core, which is private");
    write(path, `import { Vac } from "@mkvm/vac";\n${clean}`);
    expect(failed(await run())).toContain(
      "@mkvm/kvm-v1: its declarations names @mkvm/vac, which package.json does not declare",
    );
    write(path, `/** @implementedBy package */\nexport interface Rmap {\n    pages: number;\n}\n${clean}`);
    expect(failed(await run())).toMatch(/exports Rmap besides its default[\s\S]*show Rmap, which are its own affair/);
    write(path, clean);
    const code = readFileSync(join(folder, "packages/kvm-v1/dist/index.js"), "utf8");
    write(
      "packages/kvm-v1/dist/index.js",
      `import { readFileSync } from "node:fs";\nexport const inner = readFileSync;\n${code}`,
    );
    expect(failed(await run())).toMatch(
      /its code imports node:fs: a module gets all[\s\S]*its code exports inner, which its declarations do not/,
    );
  });
});

describe("published modules", () => {
  const modules = mkdtempSync(join(tmpdir(), "mkvm-abi-modules-"));
  afterAll(() => rmSync(modules, { recursive: true }));

  /** A published form of kvm-v1, changed. */
  function published(name: string, change: (manifest: Record<string, unknown>, code: string) => string): string {
    const directory = join(modules, name);
    mkdirSync(join(directory, "dist"), { recursive: true });
    cpSync(join(workspace, "packages/kvm-v1/dist"), join(directory, "dist"), { recursive: true });
    const manifest = JSON.parse(readFileSync(join(workspace, "packages/kvm-v1/package.json"), "utf8"));
    const file = join(directory, "dist/index.js");
    writeFileSync(file, change(manifest, readFileSync(file, "utf8")));
    writeFileSync(join(directory, "package.json"), JSON.stringify(manifest));
    return directory;
  }

  test("one that works goes on, from a folder and from a tarball", async () => {
    const directory = published("good", (_, code) => code);
    await succeed("npm", ["pack", "--silent", "--pack-destination", modules], { cwd: directory });
    const result = await run({ modules: [directory, join(modules, "mkvm-kvm-v1-0.1.0.tgz")] });
    expect(result.modules.map(({ trial, refusedBy }) => [trial?.detail, refusedBy])).toEqual([
      ["loads, runs a VM, unloads", []],
      ["loads, runs a VM, unloads", []],
    ]);
    expect(failed(result)).toBe("");
  });

  test("one whose range no longer fits is named, and one that breaks though it fits fails the check", async () => {
    const old = published("old", (manifest, code) => {
      manifest.mkvm = { id: "1", requires: { "@mkvm/kvm-abi": "^0.0.9" } };
      return code;
    });
    const broken = published("broken", (_, code) => code.replaceAll("registerOwner(", "registerOwnerOnce("));
    const result = await run({ modules: [old, broken] });
    expect(result.modules[0]).toMatchObject({
      refusedBy: ["@mkvm/kvm-abi ^0.0.9, becomes 0.1.0"],
      trial: { works: true },
      brokenUnannounced: false,
    });
    expect(result.modules[1]).toMatchObject({ refusedBy: [], trial: { works: false }, brokenUnannounced: true });
    expect(failed(result)).toMatch(/^@mkvm\/kvm-v1 0\.1\.0 breaks, and no range of it says so: insmod fails/);
  });

  test("a path that is none is refused", async () => {
    await expect(run({ modules: ["./nowhere.tgz"] })).rejects.toThrow("no module at './nowhere.tgz'");
  });
});

describe("against a registry", () => {
  const tarballs = mkdtempSync(join(tmpdir(), "mkvm-abi-registry-"));
  let server: Server;
  let url: string;
  let tamper = false;

  beforeAll(async () => {
    const pnpm = join(workspace, "node_modules", ".bin", "pnpm");
    const packed: string[] = [];
    for (const name of ["vac", "kvm-v1"]) {
      const said = await succeed(pnpm, ["pack", "--json", "--pack-destination", tarballs], {
        cwd: join(folder, "packages", name),
      });
      packed.push(JSON.parse(said).filename);
    }
    const { createHash } = await import("node:crypto");
    server = createServer((request, response) => {
      const path = decodeURIComponent(request.url ?? "");
      const tarball = packed.find((file) => path.endsWith(".tgz") && file.endsWith(path.slice(path.lastIndexOf("/") + 1)));
      if (tarball) {
        const bytes = readFileSync(tarball);
        if (tamper) bytes[bytes.length - 9]! ^= 1;
        response.end(bytes);
        return;
      }
      const name = path.slice(1).replace("@mkvm/", "");
      const own = packed.find((file) => file.includes(`mkvm-${name}-`));
      if (!own) {
        response.writeHead(404, { "content-type": "application/json" }).end("{}");
        return;
      }
      const manifest = JSON.parse(readFileSync(join(folder, "packages", name, "package.json"), "utf8"));
      const integrity = `sha512-${createHash("sha512").update(readFileSync(own)).digest("base64")}`;
      manifest.dist = { tarball: `${url}tarballs/${own.slice(own.lastIndexOf("/") + 1)}`, integrity };
      const body = { name: manifest.name, "dist-tags": { latest: "0.1.0" }, versions: { "0.1.0": manifest } };
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  }, 300_000);
  afterAll(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    rmSync(tarballs, { recursive: true });
  });

  test("a published version is compared by the report that it carries, and published modules are tried", async () => {
    const same = await run({ against: "@mkvm/vac@0.1.0", registry: url });
    expect(failed(same)).toBe("");
    expect(same.packages.map((each) => [each.package, each.findings])).toEqual([["@mkvm/vac", []]]);
    expect(same.modules.map((each) => [each.package, each.version, each.trial?.works])).toEqual([
      ["@mkvm/kvm-v1", "0.1.0", true],
    ]);
    edit(
      "packages/vac/dist/index.d.ts",
      "    emergencyDisable(): void;",
      "    emergencyDisable(): void;\n    suspend(): void;",
    );
    const grown = await run({ against: "@mkvm/vac@0.1.0", registry: url });
    expect(failed(grown)).toContain("@mkvm/vac needs a patch bump after 0.1.0");
  });

  test("a version that is not there, a tampered tarball, a registry that is down: one line each", async () => {
    await expect(run({ against: "@mkvm/vac@9.9.9", registry: url })).rejects.toThrow(
      /^registry http\S+ has no @mkvm\/vac@9\.9\.9/,
    );
    await expect(run({ against: "9.9.9", registry: url })).rejects.toThrow(
      /has no package of this workspace in version 9\.9\.9$/,
    );
    await expect(run({ against: "@mkvm/kvm-v9@1.0.0", registry: url })).rejects.toThrow(
      /^@mkvm\/kvm-v9 is no published package of this workspace/,
    );
    tamper = true;
    await expect(run({ against: "@mkvm/vac@0.1.0", registry: url })).rejects.toThrow(
      /^the tarball of @mkvm\/vac@0\.1\.0 .*integrity mismatch/,
    );
    tamper = false;
    await expect(run({ against: "@mkvm/vac@0.1.0", registry: "http://127.0.0.1:9/" })).rejects.toThrow(
      /^registry http:\/\/127\.0\.0\.1:9\/ cannot be asked/,
    );
    await expect(run({ against: "@mkvm/vac@0.1.0", registry: "nowhere" })).rejects.toThrow("'nowhere' is no registry");
    expect(await git("status", "--porcelain")).toBe("");
  });
});

describe("git refs that cannot be used", () => {
  test("none of that name, one without reports, a folder that is no repository", async () => {
    await expect(run({ against: "no-such-branch" })).rejects.toThrow(/^'no-such-branch' is neither a version nor a git ref/);
    await expect(run({ against: "--output=x" })).rejects.toThrow(/is neither a version nor a git ref/);
    const tree = (await git("mktree", "--missing")).trim();
    const empty = (await git("commit-tree", tree, "-m", "without reports")).trim();
    await expect(run({ against: empty })).rejects.toThrow(/has no ABI reports: give a later ref, or a published version$/);
    const alone = mkdtempSync(join(tmpdir(), "mkvm-abi-alone-"));
    for (const file of ["package.json", "pnpm-workspace.yaml"]) cpSync(join(folder, file), join(alone, file));
    mkdirSync(join(alone, "packages"));
    await expect(run({ directory: alone, against: "main" })).rejects.toThrow(/is no git repository/);
    rmSync(alone, { recursive: true });
  });

  test("before the first release there is nothing to compare with: a failure, unless that is allowed; tags are found after it", async () => {
    expect(failed(await run({ against: "last-release" }))).toMatch(/^no package of this workspace was released yet/);
    expect(failed(await run({ against: "last-release", allowNoRelease: true }))).toBe("");
    await git("tag", "@mkvm/vac@0.1.0");
    try {
      const result = await run({ against: "last-release" });
      expect(result.against).toBe("last release (@mkvm/vac@0.1.0)");
      expect(result.packages.find(({ package: name }) => name === "@mkvm/vac")?.findings).toEqual([]);
    } finally {
      await git("tag", "-d", "@mkvm/vac@0.1.0");
    }
  });
});

test("the command is part of mkvm: its status and its one line", async () => {
  const mkvm = join(workspace, "packages", "host", "dist", "cli.js");
  const abi = (...words: string[]) => attempt(process.execPath, [mkvm, "abi", ...words], { cwd: folder });
  const passes = await abi("check", "--against", "HEAD", "--json");
  expect([passes.status, JSON.parse(passes.stdout).failures]).toEqual([0, []]);
  const refused = await abi("check", "--against", "no-such-branch");
  expect([refused.status, refused.stdout]).toEqual([1, ""]);
  expect(refused.stderr).toMatch(/^mkvm abi: 'no-such-branch' is neither .*\n$/);
  expect((await abi("check")).status).toBe(2);
  edit("packages/vmm/dist/index.d.ts", "readonly reset: 10;", "readonly reset: 11;");
  const table = await abi("check", "--against", "HEAD");
  expect(table.status).toBe(1);
  expect(table.stdout).toMatch(/major +constant-type-changed +ExitStatus\.reset +10 -> 11/);
  expect(table.stdout).toContain("fails: @mkvm/vmm needs a minor bump");
  const stale = await abi("report", "--check");
  expect(stale.status).toBe(1);
  expect(stale.stdout).toContain("packages/vmm/etc/vmm.abi.json differs from what is built");
});
