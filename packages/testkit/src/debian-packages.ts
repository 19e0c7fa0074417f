import { execFile } from "node:child_process";
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Debian's packages of this machine's release, fetched below a folder of our own: no root is needed and the system stays as it is. */
export class DebianPackages {
  readonly #work: string;
  readonly #options: readonly string[];

  /** Reads the package lists. Throws when this is no Debian, or its mirror is out of reach. */
  static async open(folder: string): Promise<DebianPackages> {
    const packages = new DebianPackages(join(folder, "apt"));
    await packages.close();
    for (const part of ["state/lists/partial", "cache/archives/partial", "archives"])
      await mkdir(join(packages.#work, part), { recursive: true });
    await packages.#apt("apt-get", "-qq", "update");
    return packages;
  }

  private constructor(work: string) {
    this.#work = work;
    const settings = [
      `Dir::State=${work}/state`,
      "Dir::State::status=/var/lib/dpkg/status",
      `Dir::Cache=${work}/cache`,
      "APT::Sandbox::User=",
    ];
    this.#options = settings.flatMap((setting) => ["-o", setting]);
  }

  /** Names of the packages that `name` depends on. */
  async dependencies(name: string): Promise<string[]> {
    const { stdout } = await this.#apt("apt-cache", "depends", name);
    return [...stdout.matchAll(/Depends:\s+(\S+)/g)].map((match) => match[1] as string);
  }

  /** Downloads a package and unpacks it. Returns the folder that is its root. */
  async unpack(name: string): Promise<string> {
    await this.#apt("apt-get", "-qq", "download", name);
    const archives = join(this.#work, "archives");
    const archive = (await readdir(archives)).find((file) => file.startsWith(`${name}_`));
    if (!archive) throw new Error(`no package ${name} was downloaded`);
    const root = join(this.#work, "unpacked", name);
    await mkdir(root, { recursive: true });
    await run("dpkg-deb", ["-x", join(archives, archive), root]);
    return root;
  }

  /** Removes all that was fetched. */
  async close(): Promise<void> {
    await rm(this.#work, { recursive: true, force: true });
  }

  #apt(tool: "apt-get" | "apt-cache", ...args: string[]): Promise<{ stdout: string }> {
    return run(tool, [...this.#options, ...args], { cwd: join(this.#work, "archives"), maxBuffer: 1 << 26 });
  }
}
