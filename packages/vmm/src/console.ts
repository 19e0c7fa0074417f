import type { SystemCalls } from "@mkvm/kvm-abi";

const BUFFER_BYTES = 4096;
const STANDARD_OUTPUT = 1,
  STANDARD_ERROR = 2;

/** How long an unfinished line, as a prompt is one, may wait for its end. */
const PROMPT_DELAY_NS = 10_000_000;

/** The VMM's end of the guest's serial line: gathers what the guest sends and writes it out in lines, or after a short while. */
export class ConsoleOutput {
  readonly #sys: SystemCalls;
  readonly #buffer: number;
  #used = 0;
  #flusher: Promise<number> | undefined;

  constructor(sys: SystemCalls) {
    this.#sys = sys;
    this.#buffer = sys.mmap(BUFFER_BYTES, -1, 0);
  }

  put(byte: number): void {
    this.#sys.memory.u8[this.#buffer + this.#used++] = byte;
    if (byte === 0x0a || this.#used === BUFFER_BYTES) this.flush();
    else if (!this.#flusher) this.#flusher = this.#sys.spawnThread("console", (sys) => this.#flushLater(sys)).finished;
  }

  async #flushLater(sys: SystemCalls): Promise<number> {
    await sys.sleepNs(PROMPT_DELAY_NS);
    this.#flusher = undefined;
    this.flush();
    return 0;
  }

  flush(): void {
    if (this.#used) this.#sys.write(STANDARD_OUTPUT, this.#buffer, this.#used);
    this.#used = 0;
  }
}

/** One line for a person, on standard error. */
export function report(sys: SystemCalls, line: string): void {
  const bytes = new TextEncoder().encode(`${line}\n`);
  const buffer = sys.mmap(Math.max(4096, bytes.length), -1, 0);
  if (buffer < 0) return;
  sys.memory.u8.set(bytes, buffer);
  sys.write(STANDARD_ERROR, buffer, bytes.length);
  sys.munmap(buffer, Math.max(4096, bytes.length));
}
