/** A process's console, on its CPU: output gathered between turns of the event loop, and input that waits to be read. */
const flushBytes = 16 * 1024;

export class ConsoleOutput {
  readonly #send: (fd: 1 | 2, bytes: Uint8Array) => void;
  #chunks: Uint8Array[] = [];
  #fd: 1 | 2 = 1;
  #length = 0;
  #scheduled = false;

  constructor(send: (fd: 1 | 2, bytes: Uint8Array) => void) {
    this.#send = send;
  }

  /** `bytes` is copied. */
  write(fd: 1 | 2, bytes: Uint8Array): void {
    if (fd !== this.#fd) this.flush();
    this.#fd = fd;
    this.#chunks.push(Uint8Array.from(bytes));
    this.#length += bytes.length;
    if (this.#length >= flushBytes) this.flush();
    else if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        this.flush();
      });
    }
  }

  flush(): void {
    if (this.#length === 0) return;
    const bytes = new Uint8Array(this.#length);
    let at = 0;
    for (const chunk of this.#chunks) {
      bytes.set(chunk, at);
      at += chunk.length;
    }
    this.#chunks = [];
    this.#length = 0;
    this.#send(this.#fd, bytes);
  }
}

export class ConsoleInput {
  #chunks: Uint8Array[] = [];
  #ended = false;
  #wake: () => void = () => {};

  /** `wake` is called when a read that waits can go on. */
  onArrival(wake: () => void): void {
    this.#wake = wake;
  }

  push(bytes: Uint8Array): void {
    if (this.#ended || bytes.length === 0) return;
    this.#chunks.push(bytes);
    this.#wake();
  }

  end(): void {
    this.#ended = true;
    this.#wake();
  }

  /** A read would not wait. */
  get isReadable(): boolean {
    return this.#chunks.length > 0 || this.#ended;
  }

  get hasEnded(): boolean {
    return this.#ended;
  }

  /** What has come and was not read yet, and whether more can come. */
  waiting(): { bytes: Uint8Array; ended: boolean } {
    return { bytes: Uint8Array.from(this.#chunks.flatMap((chunk) => [...chunk])), ended: this.#ended };
  }

  /** Nothing more is read, whatever has come. */
  close(): void {
    this.#chunks = [];
    this.end();
  }

  /** Bytes read, 0 at the end; undefined: wait. */
  read(into: Uint8Array): number | undefined {
    const first = this.#chunks[0];
    if (!first) return this.#ended ? 0 : undefined;
    const count = Math.min(first.length, into.length);
    into.set(first.subarray(0, count));
    if (count === first.length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(count);
    return count;
  }
}
