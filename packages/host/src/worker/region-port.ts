/** The way from a CPU's thread to the one that translates, which all CPUs share. */
import { type MessagePort, receiveMessageOnPort } from "node:worker_threads";
import { type RegionAnswer, type RegionRequest, type RegionThread, translateRegion } from "@mkvm/hw-x86";

/** What a CPU is given at its start. */
export interface RegionChannel {
  port: MessagePort;
  /** An i32: answers that were sent. A CPU that runs a guest looks here, which costs less than to ask the port. */
  sent: SharedArrayBuffer;
}

export interface RegionQuestion {
  id: number;
  region: RegionRequest;
}
export interface RegionReply {
  id: number;
  code: RegionAnswer;
}

interface Waiting {
  readonly region: RegionRequest;
  readonly answer: (code: RegionAnswer) => void;
}

export class RegionPort implements RegionThread {
  readonly #port: MessagePort;
  readonly #sent: Int32Array;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #taken = 0;
  #isClosed = false;

  constructor({ port, sent }: RegionChannel) {
    this.#port = port;
    this.#sent = new Int32Array(sent);
    port.on("close", () => this.#close());
    port.unref();
  }

  request(region: RegionRequest, answer: (code: RegionAnswer) => void): void {
    if (this.#isClosed) {
      answer(translateRegion(region));
      return;
    }
    const id = ++this.#lastId;
    this.#waiting.set(id, { region, answer });
    this.#port.postMessage({ id, region } satisfies RegionQuestion);
  }

  poll(): void {
    if (Atomics.load(this.#sent, 0) === this.#taken) return;
    for (let received = receiveMessageOnPort(this.#port); received; received = receiveMessageOnPort(this.#port)) {
      const { id, code } = received.message as RegionReply;
      this.#taken = (this.#taken + 1) | 0;
      this.#waiting.get(id)?.answer(code);
      this.#waiting.delete(id);
    }
  }

  /** The thread has ended: this one does what it did not, and whatever comes. */
  #close(): void {
    this.#isClosed = true;
    for (const { region, answer } of this.#waiting.values()) answer(translateRegion(region));
    this.#waiting.clear();
  }
}
