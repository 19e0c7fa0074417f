import { type CpuClock, ownCpuTime } from "./cpu-time.ts";

/** What a timing guest says on its serial line: START, then "name checksum" as each workload ends, then END. */
export interface WorkloadTime {
  workload: string;
  checksum: string;
  seconds: number;
  /** CPU time of the engine's process. */
  cpuSeconds: number;
}

/** Takes the line's text as it comes, and the time at which it came. */
export class TimingLines {
  readonly times: WorkloadTime[] = [];
  ended = false;
  /** Of the process that runs the guest. */
  cpuTime: CpuClock = ownCpuTime;
  #last = 0;
  #lastCpu = 0;
  #rest = "";

  feed(text: string): void {
    const lines = (this.#rest + text).split(/\r*\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    const now = performance.now();
    const cpu = this.cpuTime();
    if (line.endsWith("START")) {
      this.#last = now;
      this.#lastCpu = cpu;
    } else if (line === "END") this.ended = true;
    else if (this.#last && /^[a-z0-9]+ [0-9a-f]{8}$/.test(line)) {
      const [workload, checksum] = line.split(" ") as [string, string];
      this.times.push({ workload, checksum, seconds: (now - this.#last) / 1000, cpuSeconds: cpu - this.#lastCpu });
      this.#last = now;
      this.#lastCpu = cpu;
    }
  }
}
