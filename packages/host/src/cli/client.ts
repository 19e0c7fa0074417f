/** A connection to the daemon. */
import { connect, type Socket } from "node:net";
import { HostError, hostErrorFrom } from "../errors.ts";
import { findEndpoint } from "./endpoint.ts";
import { type Answer, type Method, type Methods, receive, type Stream, send } from "./wire.ts";

interface Waiting {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
  onStream: (stream: Stream) => void;
}

export class DaemonClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  /** Resolves when the connection is gone. */
  readonly closed: Promise<void>;

  constructor(socket: Socket) {
    this.#socket = socket;
    receive(
      socket,
      (message) => this.#settle(message as Answer),
      () => socket.destroy(),
    );
    this.closed = new Promise((resolve) => {
      socket.on("close", () => {
        for (const { reject } of this.#waiting.values())
          reject(new HostError("EIO", "the daemon went away: start it with 'mkvm up'"));
        this.#waiting.clear();
        resolve();
      });
    });
    socket.on("error", () => socket.destroy());
  }

  call<M extends Method>(method: M, ...params: Parameters<Methods[M]>): Promise<Awaited<ReturnType<Methods[M]>>> {
    return this.stream(method, () => {}, ...params);
  }

  stream<M extends Method>(
    method: M,
    onStream: (stream: Stream) => void,
    ...params: Parameters<Methods[M]>
  ): Promise<Awaited<ReturnType<Methods[M]>>> {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve: (result) => resolve(result as Awaited<ReturnType<Methods[M]>>), reject, onStream });
      send(this.#socket, { id, method, params });
    });
  }

  close(): void {
    this.#socket.end();
  }

  #settle(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    if (!waiting) return;
    if ("stream" in answer) {
      waiting.onStream(answer.stream);
      return;
    }
    this.#waiting.delete(answer.id);
    if ("error" in answer) waiting.reject(hostErrorFrom(answer.error));
    else waiting.resolve(answer.result);
  }
}

/** The daemon, or undefined when none runs. */
export function tryConnect(): Promise<DaemonClient | undefined> {
  const { socket: path } = findEndpoint();
  return new Promise((resolve) => {
    const socket = connect(path);
    const refused = () => resolve(undefined);
    socket.once("error", refused);
    socket.once("connect", () => {
      socket.off("error", refused);
      resolve(new DaemonClient(socket));
    });
  });
}

export async function connectDaemon(): Promise<DaemonClient> {
  const client = await tryConnect();
  if (!client) throw new HostError("ENOENT", "no daemon is running: start one with 'mkvm up'");
  return client;
}
