/** A folder of somebody who uses mkvm from a registry, with a daemon of its own. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { attempt, type CommandResult, succeed } from "./commands.ts";
import type { LoopbackRegistry } from "./loopback-registry.ts";
import { workspace } from "./workspace-release.ts";

export class UserProject {
  readonly folder: string;
  readonly #env: NodeJS.ProcessEnv;

  /** `registry`: where packages come from. */
  constructor(registry: LoopbackRegistry) {
    const root = mkdtempSync(join(tmpdir(), "mkvm-user-"));
    this.folder = join(root, "project");
    mkdirSync(this.folder);
    writeFileSync(join(this.folder, "package.json"), `${JSON.stringify({ name: "project", private: true, type: "module" })}\n`);
    // As on a user's machine: nothing of this workspace's run is to be seen
    const { INIT_CWD: _, NODE_PATH: __, ...environment } = registry.env;
    const path = [join(this.folder, "node_modules", ".bin"), join(workspace, "node_modules", ".bin"), environment.PATH];
    this.#env = {
      ...environment,
      PATH: path.join(":"),
      MKVM_STATE_DIR: join(root, "state"),
      XDG_CACHE_HOME: join(root, "cache"),
      npm_config_store_dir: join(root, "store"),
    };
  }

  get env(): NodeJS.ProcessEnv {
    return this.#env;
  }

  pnpm(...args: string[]): Promise<string> {
    return succeed(join(workspace, "node_modules", ".bin", "pnpm"), args, { cwd: this.folder, env: this.#env });
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
  /** Version of an installed package. */
  installed(name: string): string {
    return JSON.parse(readFileSync(join(this.folder, "node_modules", name, "package.json"), "utf8")).version;
  }

  async remove(): Promise<void> {
    await attempt("mkvm", ["down"], { cwd: this.folder, env: this.#env }).catch(() => {});
    rmSync(join(this.folder, ".."), { recursive: true, force: true });
  }
}
