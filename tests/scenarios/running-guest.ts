import { existsSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Host, ProcessHandle } from "@mkvm/host";
import { type CheckReport, CheckWorkload, checkGuest, findLinuxGuest, smpGuest } from "@mkvm/testkit";

const folder = mkdtempSync(join(tmpdir(), "mkvm-guest-"));

/** Arguments of the VMM for the tiny guest of testkit; with `rounds` it ends by itself. */
export function tinyGuest(rounds?: number): string[] {
  const image = join(folder, `check-guest-${rounds ?? "endless"}.bin`);
  // A VMM may be reading it for another guest
  if (!existsSync(image)) writeFileSync(image, checkGuest(rounds));
  return ["--kernel", image, "--format", "flat64", "--memory", "16M"];
}

/**
 * The guest of testkit that checks how four CPUs work together: arguments of the VMM, within how many instructions it ends, and its
 * status when all checks have passed. It ends by itself.
 */
export function smpTestGuest(): { args: string[]; instructions: number; passed: number } {
  const image = join(folder, "smp-guest.bin");
  const guest = smpGuest({ cpus: 4, interrupts: true });
  if (!existsSync(image)) writeFileSync(image, guest.image);
  const args = ["--kernel", image, "--format", "flat64", "--memory", "4M", "--cpus", String(guest.cpus)];
  // The VMM's status for a byte v at that port is (v << 1) | 1
  return { args, instructions: 51_000, passed: 3 };
}

/** Arguments of the VMM for Linux with `workload` as mkvm.run; undefined where no Linux can be had, which the test then says. */
export async function linuxGuest(
  workload: "check" | "poweroff" | "shell",
  memory = "256M",
  /** Loops that run beside it and never sleep: a shell starts them, which need /dev/null, and becomes init. */
  load = 0,
): Promise<string[] | undefined> {
  const linux = await findLinuxGuest({ log: console.log });
  if (!linux) {
    if (process.env.CI) throw new Error("CI must run Linux: no kernel could be had from the cache or the package manager");
    return undefined;
  }
  return [
    "--kernel",
    linux.kernel,
    "--initrd",
    linux.initrd,
    "--append",
    `console=ttyS0 quiet panic=-1 mkvm.run=${workload}${load > 0 ? ` rdinit=/bin/sh -- -c "/bin/mount -t devtmpfs dev /dev; ${"while :; do :; done & ".repeat(load)}exec /init"` : ""}`,
    "--memory",
    memory,
  ];
}

/** A guest that runs the check workload, followed by its console. */
export class RunningGuest {
  readonly process: ProcessHandle;
  readonly #check: CheckWorkload;
  readonly #waiting = new Set<() => void>();
  #ended = false;
  transcript = "";

  static async start(host: Host, args: string[], options: { device?: string; cpu?: number } = {}): Promise<RunningGuest> {
    const device = options.device ? ["--device", options.device] : [];
    const process = await host.run({
      program: "@mkvm/vmm",
      args: [...args, ...device],
      ...(options.cpu !== undefined && { cpu: options.cpu }),
    });
    return new RunningGuest(process, !args.includes("--format"));
  }

  constructor(process: ProcessHandle, digests: boolean) {
    this.process = process;
    this.#check = new CheckWorkload(digests);
    void this.#follow();
  }

  get pid(): number {
    return this.process.pid;
  }

  get report(): CheckReport {
    return this.#check.report;
  }

  async #follow(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.process.output) {
      const text = decoder.decode(chunk, { stream: true });
      this.transcript += text;
      this.#check.feed(text);
      for (const look of [...this.#waiting]) look();
    }
    this.#ended = true;
    for (const look of [...this.#waiting]) look();
  }

  /** Resolves when the condition holds; fails with the end of the console when the guest ends first. */
  until(what: string, condition: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (condition()) resolve();
        else if (this.#ended) reject(new Error(`the guest ended before ${what}:\n${this.transcript.slice(-2000)}`));
        else return;
        this.#waiting.delete(look);
      };
      this.#waiting.add(look);
      look();
    });
  }

  /** Waits for `count` more rounds of the workload. */
  rounds(count: number): Promise<void> {
    const goal = this.report.rounds + count;
    return this.until(`round ${goal}`, () => this.report.rounds >= goal);
  }

  send(word: string): void {
    this.process.write(new TextEncoder().encode(`${word}\n`));
  }

  /** Asks the workload to end; gives the process's exit status. */
  async stop(): Promise<number> {
    this.send("stop");
    const { status } = await this.process.exited;
    await this.until("the end of its console", () => this.#ended);
    return status;
  }
}
