import type { ProcessHandle } from "@mkvm/host";
import { type CheckReport, CheckWorkload } from "@mkvm/testkit";

/** The guest of the demo, seen through its console: what it printed last, what its own checks say, and its commands. */
export class GuestSession {
  readonly #process: ProcessHandle;
  readonly #check: CheckWorkload;
  readonly #waiting = new Set<() => void>();
  #lastLine = "";
  #rest = "";
  #exit: { status: number; reason: string; message?: string } | undefined;
  /** All that the guest and the VMM said. */
  transcript = "";

  constructor(process: ProcessHandle, digests: boolean) {
    this.#process = process;
    this.#check = new CheckWorkload(digests);
    void this.#follow();
    void process.exited.then((exit) => {
      this.#exit = exit;
      this.#wake();
    });
  }

  get report(): CheckReport {
    return this.#check.report;
  }

  get lastLine(): string {
    return this.#lastLine;
  }

  get exit() {
    return this.#exit;
  }

  async #follow(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#process.output) {
      const text = decoder.decode(chunk, { stream: true });
      this.transcript += text;
      this.#check.feed(text);
      const lines = (this.#rest + text).split(/[\r\n]+/);
      this.#rest = lines.pop() ?? "";
      const last = lines.filter((line) => line.trim()).at(-1);
      if (last) this.#lastLine = last;
      this.#wake();
    }
    this.#wake();
  }

  #wake(): void {
    for (const waiter of [...this.#waiting]) waiter();
  }

  /** Resolves when the condition holds; rejects when the guest ends first. */
  until(what: string, condition: () => boolean, onProgress?: () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = () => {
        onProgress?.();
        if (condition()) resolve();
        else if (this.#exit)
          reject(
            new Error(
              `the guest ended (${this.#exit.message ?? `status ${this.#exit.status}`}) before ${what}; its last line: ${this.#lastLine}`,
            ),
          );
        else return;
        this.#waiting.delete(look);
      };
      this.#waiting.add(look);
      look();
    });
  }

  /** `count` more rounds of the workload. */
  rounds(count: number): Promise<void> {
    const goal = this.report.rounds + count;
    return this.until(`round ${goal}`, () => this.report.rounds >= goal);
  }

  command(word: "mark" | "stop"): void {
    this.#process.write(new TextEncoder().encode(`${word}\n`));
  }

  async ended(): Promise<number> {
    return (await this.#process.exited).status;
  }
}
