import { type Section, type SystemCalls, sectionList, struct, u64 } from "@mkvm/kvm-abi";

const BUFFER_BYTES = 4096;
const STANDARD_OUTPUT = 1,
  STANDARD_ERROR = 2;

/** How long an unfinished line, as a prompt is one, may wait for its end. */
const PROMPT_DELAY_NS = 10_000_000;

/** One entry while a line waits for its end. A VMM that knows nothing of it loses no output: what was gathered is written when it is saved. */
const ConsoleState = sectionList("vmm.console", {
  version: 1,
  required: false,
  fixed: struct("vmm_console", 8, { reserved: u64(0) }),
  entry: struct("vmm_console_wait", 8, { remaining_ns: u64(0) }),
});

/** The VMM's end of the guest's serial line: gathers what the guest sends and writes it out in lines, or after a short while. */
export class ConsoleOutput {
  readonly #sys: SystemCalls;
  readonly #buffer: number;
  #used = 0;
  #flusher: Promise<number> | undefined;
  /** When the flusher wakes; undefined before it has gone to sleep. */
  #flushAtNs: number | undefined;

  constructor(sys: SystemCalls) {
    this.#sys = sys;
    this.#buffer = sys.mmap(BUFFER_BYTES, -1, 0);
  }

  put(byte: number): void {
    this.#sys.memory.u8[this.#buffer + this.#used++] = byte;
    if (byte === 0x0a || this.#used === BUFFER_BYTES) this.flush();
    else if (!this.#flusher) this.#startFlusher(PROMPT_DELAY_NS);
  }

  #startFlusher(delayNs: number): void {
    this.#flusher = this.#sys.spawnThread("console", (sys) => this.#flushLater(sys, delayNs)).finished;
  }

  async #flushLater(sys: SystemCalls, delayNs: number): Promise<number> {
    this.#flushAtNs = sys.clockMonotonicNs() + delayNs;
    await sys.sleepNs(delayNs);
    this.#flushAtNs = undefined;
    this.#flusher = undefined;
    this.flush();
    return 0;
  }

  /** Writes out what there is. A thread that waits to do so later waits on: when it wakes, vCPUs that run give way. */
  save(): Section {
    this.flush();
    const remainingNs = Math.max(0, (this.#flushAtNs ?? Number.POSITIVE_INFINITY) - this.#sys.clockMonotonicNs());
    const entries = this.#flusher ? [{ remaining_ns: BigInt(Math.min(remainingNs, PROMPT_DELAY_NS)) }] : [];
    return ConsoleState.encode(0, {}, entries);
  }

  /** Goes on as the one that was saved. */
  restore(sections: readonly Section[]): void {
    const state = ConsoleState.find(sections);
    if (typeof state === "string") return;
    for (const { remaining_ns } of state.entries) this.#startFlusher(Number(remaining_ns));
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
