/** A process as the control plane holds it: its console and its end. */
import type { EngineReport, ExitStatus, MoveReport, VmStatistics } from "./types.ts";

const ringBytes = 1024 * 1024;

export type OutputListener = (bytes: Uint8Array, fd: 1 | 2) => void;

export interface ProcessHandle {
  readonly pid: number;
  readonly name: string;
  readonly cpu: number;
  /** What the process wrote to descriptors 1 and 2, from the oldest that is kept (1 MiB), then as it comes, to its end. */
  readonly output: AsyncIterable<Uint8Array>;
  readonly exited: Promise<ExitStatus>;
  /** Moves between modules so far, also those that failed. */
  readonly moves: readonly MoveReport[];
  /** Calls `listener` with all that is kept, then with what comes. Returns how to stop. */
  onOutput(listener: OutputListener): () => void;
  /** Console input. */
  write(bytes: Uint8Array | string): void;
  /** No more input comes. */
  endInput(): void;
  /** What is kept of the output. */
  console(): Uint8Array;
}

export class HostedProcess implements ProcessHandle {
  readonly pid: number;
  readonly name: string;
  cpu: number;
  /** Its state is out of the CPU that it leaves, whose thread may die: it goes on on another. */
  outlivesCpu = false;
  /** Package of the program. */
  readonly program: { readonly package: string; readonly version: string };
  /** URL of its entry. */
  readonly entry: string;
  readonly exited: Promise<ExitStatus>;
  readonly moves: MoveReport[] = [];
  /** Of its VMs when it ended. */
  statistics: VmStatistics[] = [];
  /** What the engine did, once the process has ended. */
  engine: EngineReport | null = null;
  readonly #sendInput: (bytes: Uint8Array | null) => void;
  readonly #listeners = new Set<OutputListener>();
  readonly #kept: { bytes: Uint8Array; fd: 1 | 2 }[] = [];
  #keptBytes = 0;
  #ended = false;
  #resolveExited: (exit: ExitStatus) => void = () => {};

  constructor(
    pid: number,
    name: string,
    cpu: number,
    program: HostedProcess["program"] & { readonly entry: string },
    sendInput: (bytes: Uint8Array | null) => void,
  ) {
    this.pid = pid;
    this.name = name;
    this.cpu = cpu;
    this.program = { package: program.package, version: program.version };
    this.entry = program.entry;
    this.#sendInput = sendInput;
    this.exited = new Promise((resolve) => {
      this.#resolveExited = resolve;
    });
  }

  get ended(): boolean {
    return this.#ended;
  }

  get output(): AsyncIterable<Uint8Array> {
    return { [Symbol.asyncIterator]: () => this.#read() };
  }

  async *#read(): AsyncGenerator<Uint8Array, undefined> {
    const queue: Uint8Array[] = [];
    let wake = () => {};
    const stop = this.onOutput((bytes) => {
      queue.push(bytes);
      wake();
    });
    const exited = this.exited.then(() => wake());
    try {
      for (;;) {
        for (let bytes = queue.shift(); bytes; bytes = queue.shift()) yield bytes;
        if (this.#ended) return undefined;
        await new Promise<void>((resolve) => {
          wake = resolve;
          if (queue.length > 0 || this.#ended) resolve();
        });
      }
    } finally {
      stop();
      void exited;
    }
  }

  onOutput(listener: OutputListener): () => void {
    for (const { bytes, fd } of this.#kept) listener(bytes, fd);
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  write(bytes: Uint8Array | string): void {
    if (!this.#ended) this.#sendInput(typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes);
  }

  endInput(): void {
    if (!this.#ended) this.#sendInput(null);
  }

  console(): Uint8Array {
    return Buffer.concat(this.#kept.map((chunk) => chunk.bytes));
  }

  // For the host

  wrote(bytes: Uint8Array, fd: 1 | 2): void {
    this.#kept.push({ bytes, fd });
    this.#keptBytes += bytes.length;
    while (this.#keptBytes > ringBytes && this.#kept.length > 1) this.#keptBytes -= this.#kept.shift()!.bytes.length;
    for (const listener of this.#listeners) listener(bytes, fd);
  }

  /** `engine`: what it did, for one that ran a guest. */
  end(exit: ExitStatus, engine: EngineReport | null = null): void {
    if (this.#ended) return;
    this.engine = engine;
    this.#ended = true;
    this.#resolveExited(exit);
  }
}
