/** A guest in a user's daemon, followed by its console. */
import { spawn } from "node:child_process";
import type { UserProject } from "./user-project.ts";

/** What `mkvm ps --json` says of a process, as far as these tests look. */
export interface ListedProcess {
  pid: number;
  modules: string[];
}

export class DaemonGuest {
  readonly pid: number;
  readonly #project: UserProject;

  private constructor(project: UserProject, pid: number) {
    this.#project = project;
    this.pid = pid;
  }

  static async start(project: UserProject, args: readonly string[]): Promise<DaemonGuest> {
    return new DaemonGuest(project, Number(await project.mkvm("run", "--detach", ...args)));
  }

  /** Resolves with the console's text once it has `count` more matches than when it was called; rejects when the guest ends first. */
  async until(what: string, count = 1): Promise<string> {
    const before = occurrences(await this.console(), what);
    return new Promise((resolve, reject) => {
      const child = spawn("mkvm", ["console", String(this.pid)], { cwd: this.#project.folder, env: this.#project.env });
      let said = "";
      child.stdout.setEncoding("utf8").on("data", (text: string) => {
        said += text;
        if (occurrences(said, what) < before + count) return;
        resolve(said);
        child.kill("SIGINT");
      });
      child.on("error", reject);
      child.on("close", () => reject(new Error(`the guest ended before ${what}: ${said.slice(-2000)}`)));
    });
  }

  console(): Promise<string> {
    return this.#project.mkvm("console", String(this.pid), "--dump");
  }

  async module(): Promise<string | undefined> {
    const processes = await this.#project.json<ListedProcess[]>("ps");
    return processes.find(({ pid }) => pid === this.pid)?.modules[0];
  }
}

const occurrences = (text: string, what: string): number => text.split(what).length - 1;
