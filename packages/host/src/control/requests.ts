/** Requests and replies over a port, with the types of protocol.ts. */
import type { MessagePort, Worker } from "node:worker_threads";
import { HostError, hostErrorFrom, plainError } from "../errors.ts";
import { LockupWatch } from "./lockup-watch.ts";
import type { CpuEvent, CpuRequestName, CpuRequests, ReplyMessage, RequestMessage } from "./protocol.ts";

export type RequestHandlers = {
  [Name in CpuRequestName]: (
    params: CpuRequests[Name]["params"],
  ) => CpuRequests[Name]["result"] | Promise<CpuRequests[Name]["result"]>;
};

const answeredAsleep: ReadonlySet<CpuRequestName> = new Set<CpuRequestName>([
  "cpu.resume",
  "cpu.stop",
  "cpu.resources",
  "cpu.ping",
  "devices.set",
  "module.describe",
  "module.load",
  "module.users",
  "module.seize",
  "module.unseize",
  "module.drain",
  "module.unload",
  "process.list",
  "process.statistics",
  "process.engine",
  "process.input",
]);

/** A CPU's thread did not answer: it hangs, as far as one can tell, or is no more. */
export class NoAnswer extends HostError {
  /** It may be at it, or have been, or will be; otherwise it never begins. */
  readonly begun: boolean;

  constructor({ code, message }: HostError, begun: boolean) {
    super(code, message);
    this.begun = begun;
  }
}

/**
 * What holds of a CPU that does not answer in time. Whoever asked is told so, and the CPU is silent from then on: it is asked for nothing
 * else, and what it had not begun it never begins.
 */
export interface RequestOptions<Result> {
  /** It is asked for this all the same, and does it when it comes back, in its turn. */
  readonly sure?: boolean;
  /** Called when it is given up, with the answer that may come yet: to undo what nobody waits for any more. */
  readonly late?: (answer: Promise<Result>) => Promise<unknown>;
}

/** Of the two ends, in memory that they share: the last request that was begun, and the last that was given up. */
export const progressBytes = 8;
const begunAt = 0;
const givenUpAt = 1;

/** Answers to it tell that the thread is there. */
const pingId = 0;

interface Waiting {
  readonly sure: boolean;
  readonly answer: PromiseWithResolvers<unknown>;
  giveUp(reason: NoAnswer): void;
}

export interface CpuListener {
  event(event: CpuEvent): void;
  silent(reason: HostError): void;
  /** It answers again. */
  back(): void;
}

/** The main thread's end. */
export class CpuClient {
  readonly #worker: Worker;
  readonly #progress: Int32Array;
  readonly #waiting = new Map<number, Waiting>();
  readonly #watch: LockupWatch;
  #lastId = pingId;
  #gone: HostError | undefined;
  /** It did not answer in time, and has not since. */
  silent: HostError | undefined;
  /** Why the CPU, which is without power, runs nothing. It tells what it has, and takes modules. */
  asleep: string | undefined;

  constructor(
    worker: Worker,
    options: { readonly cpu: number; readonly answerMs: number; readonly progress: SharedArrayBuffer },
    listener: CpuListener,
  ) {
    const { cpu, answerMs, progress } = options;
    this.#worker = worker;
    this.#progress = new Int32Array(progress);
    this.#watch = new LockupWatch(answerMs, {
      ping: () => this.#post({ id: pingId, name: "cpu.ping", params: null, sure: true }),
      silent: () => {
        const remedy = `'mkvm cpu kill ${cpu}' ends it with its processes`;
        this.silent = new HostError("ETIMEDOUT", `cpu${cpu} did not answer within ${answerMs} ms: ${remedy}`);
        this.#giveUp(this.silent);
        listener.silent(this.silent);
      },
      back: () => {
        this.silent = undefined;
        this.#lookAfter();
        listener.back();
      },
    });
    worker.on("message", (message: ReplyMessage | CpuEvent) => {
      if ("event" in message) listener.event(message);
      else if (message.id === pingId) this.#watch.pong();
      else this.#settle(message);
    });
  }

  /** @throws NoAnswer when the CPU's thread hangs or ends */
  request<Name extends CpuRequestName>(
    name: Name,
    params: CpuRequests[Name]["params"],
    options: RequestOptions<CpuRequests[Name]["result"]> = {},
  ): Promise<CpuRequests[Name]["result"]> {
    const { sure = false, late } = options;
    if (this.#gone) return Promise.reject(new NoAnswer(this.#gone, false));
    if (this.asleep !== undefined && !answeredAsleep.has(name)) return Promise.reject(new HostError("EAGAIN", this.asleep));
    if (this.silent && !sure) return Promise.reject(new NoAnswer(this.silent, false));
    const id = ++this.#lastId;
    const answer = Promise.withResolvers<CpuRequests[Name]["result"]>();
    const inTime = Promise.withResolvers<CpuRequests[Name]["result"]>();
    answer.promise.then(inTime.resolve, inTime.reject);
    let givenUp = false;
    const giveUp = (reason: NoAnswer): void => {
      if (givenUp) return;
      givenUp = true;
      inTime.reject(reason);
      late?.(answer.promise).catch(() => {});
    };
    this.#waiting.set(id, { sure, answer: answer as PromiseWithResolvers<unknown>, giveUp });
    this.#post({ id, name, params, sure });
    if (this.silent) giveUp(new NoAnswer(this.silent, true));
    else this.#watch.begin();
    return inTime.promise;
  }

  /** The thread ended: whatever waits for it fails with `reason`. */
  fail(reason: HostError): void {
    this.#gone = reason;
    this.silent = undefined;
    this.#watch.end();
    const lastBegun = Atomics.load(this.#progress, begunAt);
    for (const [id, { answer }] of this.#waiting) answer.reject(new NoAnswer(reason, id <= lastBegun));
    this.#waiting.clear();
  }

  #post(message: RequestMessage): void {
    this.#worker.postMessage(message);
  }

  #giveUp(reason: HostError): void {
    // The other end says first what it begins, then looks whether that was given up: one of the two sees what the other has written
    Atomics.store(this.#progress, givenUpAt, this.#lastId);
    const lastBegun = Atomics.load(this.#progress, begunAt);
    for (const [id, { sure, giveUp }] of [...this.#waiting]) giveUp(new NoAnswer(reason, sure || id <= lastBegun));
  }

  #settle(reply: ReplyMessage): void {
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    this.#lookAfter();
    if (!waiting) return;
    if ("error" in reply) waiting.answer.reject(hostErrorFrom(reply.error));
    else waiting.answer.resolve(reply.result);
  }

  #lookAfter(): void {
    if (this.#waiting.size === 0) this.#watch.end();
    else this.#watch.begin();
  }
}

/** The CPU thread's end. */
export function serveRequests(port: MessagePort, handlers: RequestHandlers, shared: SharedArrayBuffer): void {
  const progress = new Int32Array(shared);
  port.on("message", ({ id, name, params, sure }: RequestMessage) => {
    if (id !== pingId) Atomics.store(progress, begunAt, id);
    const isGivenUp = !sure && id <= Atomics.load(progress, givenUpAt);
    const handler = handlers[name] as ((params: unknown) => unknown) | undefined;
    const answer = async () => {
      if (isGivenUp) throw new HostError("ECANCELED", `'${name}' was given up before it began`);
      if (!handler) throw new HostError("ENOSYS", `a CPU knows no request '${name}'`);
      return handler(params);
    };
    answer().then(
      (result) => port.postMessage({ id, result } satisfies ReplyMessage),
      (thrown) => port.postMessage({ id, error: plainError(thrown) } satisfies ReplyMessage),
    );
  });
}
