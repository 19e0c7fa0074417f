/** What a timing guest says on its serial line: START, then "name checksum" as each workload ends, then END. */
export interface WorkloadTime {
  workload: string;
  checksum: string;
  seconds: number;
}

/** Takes the line's text as it comes, and the time at which it came. */
export class TimingLines {
  readonly times: WorkloadTime[] = [];
  ended = false;
  #last = 0;
  #rest = "";

  feed(text: string): void {
    const lines = (this.#rest + text).split(/\r*\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    const now = performance.now();
    if (line.endsWith("START")) this.#last = now;
    else if (line === "END") this.ended = true;
    else if (this.#last && /^[a-z0-9]+ [0-9a-f]{8}$/.test(line)) {
      const [workload, checksum] = line.split(" ") as [string, string];
      this.times.push({ workload, checksum, seconds: (now - this.#last) / 1000 });
      this.#last = now;
    }
  }
}
