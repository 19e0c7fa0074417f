/** The thread that translates for all CPUs, as the control plane has it. */
import { MessageChannel, Worker } from "node:worker_threads";
import { messageOf } from "../errors.ts";
import type { RegionChannel } from "../worker/region-port.ts";

/** It keeps nothing between two regions. */
const youngGenerationMb = 8;

export class TranslationThread {
  readonly #log: (message: string) => void;
  readonly #ends: RegionChannel[] = [];
  #worker: Worker | undefined;
  #ending = false;

  constructor(log: (message: string) => void) {
    this.#log = log;
  }

  /** For a CPU. What it asks before the thread runs waits in it. */
  channel(): RegionChannel {
    const { port1, port2 } = new MessageChannel();
    const sent = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
    this.#ends.push({ port: port1, sent });
    return { port: port2, sent };
  }

  /** Once, after the channels are made. CPUs do not wait for it. */
  start(): void {
    const worker = new Worker(regionEntry(), {
      name: "translator",
      resourceLimits: { maxYoungGenerationSizeMb: youngGenerationMb },
    });
    this.#worker = worker;
    worker.unref();
    for (const end of this.#ends) worker.postMessage(end, [end.port]);
    const ended = (why: string): void => {
      if (!this.#ending) this.#log(`the translator stopped: ${why}; CPUs translate what is hot themselves`);
      this.#ending = true;
    };
    worker.on("error", (error) => ended(messageOf(error)));
    worker.on("exit", (status) => ended(`its thread ended with status ${status}`));
  }

  async terminate(): Promise<void> {
    this.#ending = true;
    if (this.#worker) await this.#worker.terminate();
    else for (const { port } of this.#ends) port.close();
  }
}

function regionEntry(): URL {
  return import.meta.url.endsWith(".ts")
    ? new URL("../region-worker.ts", import.meta.url)
    : new URL("./region-worker.js", import.meta.url);
}
