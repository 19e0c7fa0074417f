/** A folder of somebody who uses mkvm from a registry, with a daemon of its own. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { attempt, type CommandResult, succeed } from "./commands.ts";
import type { LoopbackRegistry } from "./loopback-registry.ts";
import { workspace } from "./workspace-release.ts";

export class UserProject {
  readonly folder: string;
  readonly #env: NodeJS.ProcessEnv;

  /** `registry`: where packages come from. `empty`: without a package.json. */
  constructor(registry: LoopbackRegistry, options: { empty?: boolean } = {}) {
    const root = mkdtempSync(join(tmpdir(), "mkvm-user-"));
    this.folder = join(root, "project");
    mkdirSync(this.folder);
    const manifest = { name: "project", private: true, type: "module" };
    if (!options.empty) writeFileSync(join(this.folder, "package.json"), `${JSON.stringify(manifest)}\n`);
    // As on a user's machine: nothing of this workspace's run is to be seen
    const { INIT_CWD: _, NODE_PATH: __, ...environment } = registry.env;
    const path = [join(this.folder, "node_modules", ".bin"), join(workspace, "node_modules", ".bin"), environment.PATH];
    this.#env = {
      ...environment,
      PATH: path.join(":"),
      MKVM_STATE_DIR: join(root, "state"),
      XDG_CACHE_HOME: join(root, "cache"),
      // 'pnpm init' would note pnpm's newest release, which is then fetched for every platform
      pnpm_config_init_package_manager: "false",
      pnpm_config_pm_on_fail: "ignore",
    };
  }

  /** Fills the folder with a copy of one of this repository's, in a git repository with `main` and `origin/main`. */
  async copyFrom(path: string): Promise<void> {
    const from = join(workspace, path);
    cpSync(from, this.folder, { recursive: true, filter: (file) => !/[\\/](node_modules|dist)$/.test(file) });
    await this.git("init", "--quiet", "--initial-branch=main");
    await this.git("config", "user.name", "User");
    await this.git("config", "user.email", "user@example.com");
    await this.git("add", "--all");
    await this.git("commit", "--quiet", "--no-verify", "-m", "start");
    await this.git("update-ref", "refs/remotes/origin/main", "HEAD");
  }
  git(...args: string[]): Promise<string> {
    return succeed("git", args, { cwd: this.folder, env: this.#env });
  }

  get env(): NodeJS.ProcessEnv {
    return this.#env;
  }

  pnpm(...args: string[]): Promise<string> {
    return succeed(join(workspace, "node_modules", ".bin", "pnpm"), args, { cwd: this.folder, env: this.#env });
  }
  attemptPnpm(...args: string[]): Promise<CommandResult> {
    return attempt(join(workspace, "node_modules", ".bin", "pnpm"), args, { cwd: this.folder, env: this.#env });
  }
  mkvm(...args: string[]): Promise<string> {
    return succeed("mkvm", args, { cwd: this.folder, env: this.#env });
  }
  attemptMkvm(...args: string[]): Promise<CommandResult> {
    return attempt("mkvm", args, { cwd: this.folder, env: this.#env });
  }
  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.mkvm(...args, "--json")) as T;
  }
  manifest(): string {
    return readFileSync(join(this.folder, "package.json"), "utf8");
  }
  /** Version of an installed package. */
  installed(name: string): string {
    return JSON.parse(readFileSync(join(this.folder, "node_modules", name, "package.json"), "utf8")).version;
  }

  async remove(): Promise<void> {
    await attempt("mkvm", ["down"], { cwd: this.folder, env: this.#env }).catch(() => {});
    rmSync(join(this.folder, ".."), { recursive: true, force: true });
  }
}
