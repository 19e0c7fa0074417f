/** The daemon: a host, and a socket on which commands ask it. */
import { chmodSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import type { Host } from "../control/host.ts";
import type { RunOptions } from "../control/types.ts";
import { HostError, plainError } from "../errors.ts";
import { isRecord } from "../loader/package-files.ts";
import { Rollouts } from "../rollout/rollouts.ts";
import { rolloutFile } from "../rollout/state.ts";
import { hostTarget, wallClock } from "../rollout/target.ts";
import type { Endpoint } from "./endpoint.ts";
import { hostVersion } from "./version.ts";
import { type DaemonMethods, hostMethods, type Request, receive, type Stream, send } from "./wire.ts";

type Emit = (stream: Stream) => void;

/** Serves `host` until `stop` is asked for; resolves when the socket listens, with a promise of the end. */
export async function serveDaemon(host: Host, endpoint: Endpoint): Promise<{ stopped: Promise<void>; stop: () => void }> {
  const sockets = new Set<Socket>();
  let finish = () => {};
  const stopped = new Promise<void>((resolve) => {
    finish = resolve;
  });

  const rollouts = new Rollouts({
    target: hostTarget(host, `${process.pid}-${host.startedMs}`),
    store: rolloutFile(endpoint.rollout),
    clock: wallClock,
    log: (text) => host.note(text),
  });

  const server = createServer((socket) => {
    sockets.add(socket);
    const closers: (() => void)[] = [];
    socket.on("close", () => {
      sockets.delete(socket);
      for (const close of closers) close();
    });
    socket.on("error", () => socket.destroy());
    const onGarbage = () => socket.destroy();
    receive(
      socket,
      (message) => {
        if (!isRequest(message)) return onGarbage();
        const { id, method, params } = message;
        const emit: Emit = (stream) => send(socket, { id, stream });
        answer(method, params, emit, (close) => closers.push(close)).then(
          (result) => {
            send(socket, { id, result: result ?? null });
            if (method === "stop") finish();
          },
          (thrown) => send(socket, { id, error: plainError(thrown) }),
        );
        return undefined;
      },
      onGarbage,
    );
  });

  async function answer(method: string, params: unknown[], emit: Emit, onClose: (close: () => void) => void): Promise<unknown> {
    const own: DaemonMethods = {
      hello: async () => ({ pid: process.pid, version: hostVersion(), cpus: host.machine.cpus, clock: host.machine.clock }),
      stop: () => host.close(),
      run: async (options: RunOptions) => {
        const { pid, name, cpu } = await host.run(options);
        return { pid, name, cpu };
      },
      restoreVm: async (options) => {
        const { pid, name, cpu } = await host.restore(options);
        return { pid, name, cpu };
      },
      console: async (pid) => Buffer.from(await host.console(pid)).toString("base64"),
      attach: async (pid) => {
        const handle = host.process(pid);
        onClose(handle.onOutput((bytes, fd) => emit({ fd, data: Buffer.from(bytes).toString("base64") })));
        return handle.exited;
      },
      input: async (pid, data) => {
        const handle = host.process(pid);
        if (data === null) handle.endInput();
        else handle.write(Buffer.from(data, "base64"));
      },
      rolloutPreview: (plan) => rollouts.preview(plan),
      rolloutStart: (plan) => rollouts.start(plan),
      rolloutStatus: async () => rollouts.status(),
      rolloutPause: () => rollouts.pause(),
      rolloutResume: () => rollouts.resume(),
      rolloutAbort: (all) => rollouts.abort(all),
      follow: () => {
        onClose(host.onLog((entry) => emit({ entry })));
        return new Promise(() => {});
      },
    };
    const target: object = Object.hasOwn(own, method) ? own : host;
    if (target === host && !(hostMethods as readonly string[]).includes(method)) {
      throw new HostError("ENOSYS", `the daemon knows no '${method}': restart it with 'mkvm down' and 'mkvm up'`);
    }
    return (Reflect.get(target, method) as (...words: unknown[]) => unknown).apply(target, params);
  }

  await new Promise<void>((resolve, reject) => {
    server.on("error", reject);
    server.listen(endpoint.socket, resolve);
  });
  if (process.platform !== "win32") chmodSync(endpoint.socket, 0o600);
  return {
    stopped: stopped.then(async () => {
      server.close();
      for (const socket of sockets) socket.end();
      if (process.platform !== "win32") rmSync(endpoint.socket, { force: true });
      await host.close();
    }),
    stop: finish,
  };
}

function isRequest(message: unknown): message is Request {
  return (
    isRecord(message) && typeof message.id === "number" && typeof message.method === "string" && Array.isArray(message.params)
  );
}
