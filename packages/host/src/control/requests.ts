/** Requests and replies over a port, with the types of protocol.ts. */
import type { MessagePort, Worker } from "node:worker_threads";
import { HostError, hostErrorFrom, plainError } from "../errors.ts";
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

/** The main thread's end. */
export class CpuClient {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, { resolve: (result: unknown) => void; reject: (error: Error) => void }>();
  #lastId = 0;
  #gone: HostError | undefined;
  /** Why the CPU, which is without power, runs nothing. It tells what it has, and takes modules. */
  asleep: string | undefined;

  constructor(worker: Worker, onEvent: (event: CpuEvent) => void) {
    this.#worker = worker;
    worker.on("message", (message: ReplyMessage | CpuEvent) => {
      if ("event" in message) onEvent(message);
      else this.#settle(message);
    });
  }

  request<Name extends CpuRequestName>(name: Name, params: CpuRequests[Name]["params"]): Promise<CpuRequests[Name]["result"]> {
    if (this.#gone) return Promise.reject(this.#gone);
    if (this.asleep !== undefined && !answeredAsleep.has(name)) return Promise.reject(new HostError("EAGAIN", this.asleep));
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve: (result) => resolve(result as CpuRequests[Name]["result"]), reject });
      this.#worker.postMessage({ id, name, params } satisfies RequestMessage);
    });
  }

  /** The thread ended: whatever waits for it fails with `reason`. */
  fail(reason: HostError): void {
    this.#gone = reason;
    for (const { reject } of this.#waiting.values()) reject(reason);
    this.#waiting.clear();
  }

  #settle(reply: ReplyMessage): void {
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if (!waiting) return;
    if ("error" in reply) waiting.reject(hostErrorFrom(reply.error));
    else waiting.resolve(reply.result);
  }
}

/** The CPU thread's end. */
export function serveRequests(port: MessagePort, handlers: RequestHandlers): void {
  port.on("message", (message: RequestMessage) => {
    const handler = handlers[message.name] as ((params: unknown) => unknown) | undefined;
    const answer = async () => {
      if (!handler) throw new HostError("ENOSYS", `a CPU knows no request '${message.name}'`);
      return handler(message.params);
    };
    answer().then(
      (result) => port.postMessage({ id: message.id, result } satisfies ReplyMessage),
      (thrown) => port.postMessage({ id: message.id, error: plainError(thrown) } satisfies ReplyMessage),
    );
  });
}
