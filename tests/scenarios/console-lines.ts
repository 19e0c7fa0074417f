import type { ProcessHandle } from "@mkvm/host";

/** Waits for lines of a process's console, each once. */
export class ConsoleLines {
  readonly #output: AsyncIterator<Uint8Array>;
  #said = "";

  constructor(process: ProcessHandle) {
    this.#output = process.output[Symbol.asyncIterator]();
  }
  async next(): Promise<string> {
    while (!this.#said.includes("\n")) {
      const { done, value } = await this.#output.next();
      if (done) return `the program ended after "${this.#said}"`;
      this.#said += new TextDecoder().decode(value);
    }
    const [line] = this.#said.split("\n", 1);
    this.#said = this.#said.slice(line.length + 1);
    return line;
  }
}
