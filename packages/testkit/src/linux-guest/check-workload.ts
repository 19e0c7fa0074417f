import { createHash } from "node:crypto";

/** What the guest's report lines say, and whether it is what must be. */
export interface CheckReport {
  rounds: number;
  /** One line each, for a person; empty when the guest noticed nothing. */
  problems: string[];
  /** The guest's kernel log since the last mark. */
  log: string[];
  /** Latest round's uptime in seconds and count of local timer interrupts. */
  uptime: number;
  ticks: number;
  /** True once the guest gave its closing report. */
  ended: boolean;
  marked: boolean;
}

const MODULUS = 1_000_000_007n;
/** Linux says this, once, when it had less of a CPU than its timers need: true of any busy machine, and nothing is lost by it. */
const LATENESS = /hrtimer: interrupt took \d+ ns/;

/**
 * Follows the console of a guest that runs the check workload (init.ts) and predicts every line: rounds are consecutive, the
 * running checksum and the digest of all lines so far are what they must be, time never goes back, the timer ticks on.
 */
export class CheckWorkload {
  readonly report: CheckReport = { rounds: 0, problems: [], log: [], uptime: 0, ticks: 0, ended: false, marked: false };
  #sum = 7n;
  readonly #lines = createHash("md5");
  readonly #digests: boolean;
  #rest = "";

  /** `digests`: the guest reports them; the tiny guest (guests/check-guest.ts) does not. */
  constructor(digests = true) {
    this.#digests = digests;
  }

  /** Takes console output as it comes. */
  feed(text: string): void {
    const lines = (this.#rest + text).split(/\r*\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    const at = line.indexOf("mkvm-");
    if (at < 0) return;
    const words = line.slice(at).split(" ");
    const field = (name: string) => words.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
    if (words[0] === "mkvm-check") this.#round(field);
    else if (words[0] === "mkvm-check-mark") this.report.marked = true;
    else if (words[0] === "mkvm-log") this.report.log.push(line.slice(at + "mkvm-log ".length));
    else if (words[0] === "mkvm-check-end") this.#end(field);
  }

  #round(field: (name: string) => string): void {
    const { report } = this;
    const n = ++report.rounds;
    this.#sum = (this.#sum * 31n + BigInt(n)) % MODULUS;
    this.#lines.update(`${n} ${this.#sum}\n`);
    const digest = this.#digests && n % 8 === 0 ? this.#lines.copy().digest("hex") : "-";
    this.#expect(n, "round", field("n"), String(n));
    this.#expect(n, "checksum", field("sum"), String(this.#sum));
    this.#expect(n, "digest of its memory", field("md5"), digest);
    const uptime = Number(field("up"));
    const ticks = Number(field("ticks"));
    if (!(uptime >= report.uptime))
      report.problems.push(`round ${n}: time went back from ${report.uptime} to ${field("up")} s`);
    if (!(ticks > report.ticks))
      report.problems.push(`round ${n}: no timer interrupt since the round before (${field("ticks")})`);
    report.uptime = uptime;
    report.ticks = ticks;
  }

  #end(field: (name: string) => string): void {
    const { report } = this;
    report.ended = true;
    this.#expect(report.rounds, "last round", field("n"), String(report.rounds));
    this.#expect(report.rounds, "last checksum", field("sum"), String(this.#sum));
    this.#expect(report.rounds, "count of messages in its kernel log", field("log"), String(report.log.length));
    const messages = report.log.filter((message) => !LATENESS.test(message));
    if (messages.length > 0) report.problems.push(`in the guest's kernel log: ${messages.join(" | ")}`);
  }

  #expect(round: number, what: string, got: string, expected: string): void {
    if (got !== expected) this.report.problems.push(`round ${round}: ${what} is ${got || "missing"}, must be ${expected}`);
  }
}
