import { spawn, spawnSync } from "node:child_process";

/** Follows lines of a timing guest: START, then "name checksum" as each workload ends, then END. */
export interface WorkloadTime {
  workload: string;
  checksum: string;
  seconds: number;
}

export class TimingLines {
  readonly times: WorkloadTime[] = [];
  ended = false;
  #last = 0;
  #rest = "";

  feed(text: string): void {
    const lines = (this.#rest + text).split(/\r?\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    const now = performance.now();
    if (line.endsWith("START")) this.#last = now;
    else if (line === "END") this.ended = true;
    else if (this.#last && /^[a-z]+ [0-9a-f]{8}$/.test(line)) {
      const [workload, checksum] = line.split(" ");
      this.times.push({ workload, checksum, seconds: (now - this.#last) / 1000 });
      this.#last = now;
    }
  }
}

/** First line of `qemu-system-x86_64 --version`, or undefined where it is not installed. */
export function qemuVersion(): string | undefined {
  const { status, stdout } = spawnSync("qemu-system-x86_64", ["--version"], { encoding: "utf8" });
  return status === 0 ? stdout.split("\n")[0] : undefined;
}

/** Runs QEMU's TCG until `done` is true of what its serial line said, or it ends. */
export function runTcg(args: readonly string[], onText: (text: string) => void, done: () => boolean): Promise<void> {
  const common = "-accel tcg -display none -serial stdio -monitor none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4";
  const child = spawn("qemu-system-x86_64", [...common.split(" "), ...args], { stdio: ["ignore", "pipe", "inherit"] });
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    onText(text);
    if (done()) child.kill();
  });
  return new Promise((resolve) => child.on("close", () => resolve()));
}
