/**
 * A copy of this workspace that is released as a maintainer would: changesets, `version-packages`, `changeset publish`. What is
 * built here is taken along, so that nothing is built again.
 */
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { attempt, type CommandResult, succeed } from "./commands.ts";

export const workspace = join(import.meta.dirname, "..", "..");

export type Bump = "major" | "minor" | "patch";

export interface Manifest {
  name: string;
  version: string;
  private?: boolean;
  mkvm?: { id: string; requires: Record<string, string> };
  [field: string]: unknown;
}

export class WorkspaceRelease {
  readonly folder: string;
  readonly #env: NodeJS.ProcessEnv;

  private constructor(folder: string, env: NodeJS.ProcessEnv) {
    this.folder = folder;
    this.#env = env;
  }

  static async create(env: NodeJS.ProcessEnv): Promise<WorkspaceRelease> {
    const folder = mkdtempSync(join(tmpdir(), "mkvm-release-"));
    const tracked = await succeed("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], { cwd: workspace });
    for (const path of tracked.split("\0")) {
      if (path === "" || !existsSync(join(workspace, path))) continue;
      mkdirSync(dirname(join(folder, path)), { recursive: true });
      cpSync(join(workspace, path), join(folder, path));
    }
    symlinkSync(join(workspace, "node_modules"), join(folder, "node_modules"));
    for (const name of readdirSync(join(workspace, "packages"))) {
      // Links between our own packages are relative, so that they lead to the copies
      for (const part of ["dist", "node_modules"]) {
        const from = join(workspace, "packages", name, part);
        if (existsSync(from)) cpSync(from, join(folder, "packages", name, part), { recursive: true, verbatimSymlinks: true });
      }
    }
    for (const file of readdirSync(join(folder, ".changeset"))) {
      if (file.endsWith(".md") && file !== "README.md") rmSync(join(folder, ".changeset", file));
    }
    const release = new WorkspaceRelease(folder, { ...env, CI: "true" });
    await release.#git("init", "--quiet", "--initial-branch=main");
    await release.#git("config", "user.name", "Release");
    await release.#git("config", "user.email", "release@example.com");
    await release.#commit("start");
    return release;
  }

  /** Published packages by name. */
  packages(): Map<string, Manifest> {
    const found = new Map<string, Manifest>();
    for (const name of readdirSync(join(this.folder, "packages"))) {
      const manifest = this.#manifest(name);
      if (!manifest.private) found.set(manifest.name, manifest);
    }
    return found;
  }

  /** Changes the package.json of a package in place; its folder has its name without the scope. */
  change(name: string, change: (manifest: Manifest) => void): void {
    const folder = name.replace("@mkvm/", "");
    const manifest = this.#manifest(folder);
    change(manifest);
    writeFileSync(join(this.folder, "packages", folder, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  }

  /** Adds a file with a change to a package, so that its tarball differs. */
  write(name: string, path: string, text: string): void {
    writeFileSync(join(this.folder, "packages", name.replace("@mkvm/", ""), path), text);
  }

  /** Writes a changeset and lets changesets set versions and changelogs. */
  async version(bumps: Readonly<Record<string, Bump>>, summary: string): Promise<void> {
    const lines = Object.entries(bumps).map(([name, bump]) => `${JSON.stringify(name)}: ${bump}`);
    writeFileSync(join(this.folder, ".changeset", "release.md"), `---\n${lines.join("\n")}\n---\n\n${summary}\n`);
    await succeed(process.execPath, [join("scripts", "version-packages.ts")], { cwd: this.folder, env: this.#env });
    await this.#commit("version");
  }

  /** Publishes every package whose version the registry does not have. */
  publish(): Promise<CommandResult> {
    const changeset = join(workspace, "node_modules", "@changesets", "cli", "bin.js");
    return attempt(process.execPath, [changeset, "publish"], { cwd: this.folder, env: this.#env });
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }

  #manifest(folder: string): Manifest {
    return JSON.parse(readFileSync(join(this.folder, "packages", folder, "package.json"), "utf8"));
  }
  async #commit(message: string): Promise<void> {
    await this.#git("add", "--all");
    await this.#git("commit", "--quiet", "--no-verify", "--allow-empty", "-m", message);
  }
  #git(...args: string[]): Promise<string> {
    return succeed("git", args, { cwd: this.folder, env: this.#env });
  }
}
