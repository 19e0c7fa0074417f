/**
 * The daemon's protocol: one JSON value a line, over a Unix socket. Requests carry an id; the answer has the same. `attach` and
 * `follow` answer with any number of stream lines before their result.
 */
import type { Socket } from "node:net";
import type { Host } from "../control/host.ts";
import type { ExitStatus, LogEntry, RestoreOptions, RunOptions } from "../control/types.ts";
import type { RolloutPlanInput } from "../rollout/plan.ts";
import type { RolloutPreview } from "../rollout/rollouts.ts";
import type { RolloutState } from "../rollout/state.ts";

/** Methods of the host that cross as they are. */
export const hostMethods = [
  "insmod",
  "rmmod",
  "keep",
  "lsmod",
  "modinfo",
  "ls",
  "ln",
  "unlink",
  "mount",
  "umount",
  "ps",
  "statistics",
  "engineReport",
  "kill",
  "upgrade",
  "migrate",
  "checkUpgrade",
  "resources",
  "rollback",
  "finalize",
  "save",
  "cpus",
  "offline",
  "online",
  "killCpu",
  "suspend",
  "resume",
  "dmesg",
] as const;
export type HostMethod = (typeof hostMethods)[number];

/** Methods of the daemon itself. */
export interface DaemonMethods {
  hello(): Promise<{ pid: number; version: string; cpus: number; clock: string }>;
  stop(): Promise<void>;
  run(options: RunOptions): Promise<{ pid: number; name: string; cpu: number }>;
  /** A process from a saved file. */
  restoreVm(options: RestoreOptions): Promise<{ pid: number; name: string; cpu: number }>;
  /** The kept console output, base64. */
  console(pid: number): Promise<string>;
  /** Streams output until the process ends. */
  attach(pid: number): Promise<ExitStatus>;
  /** Console input, base64; null: its end. */
  input(pid: number, data: string | null): Promise<void>;
  rolloutPreview(plan: RolloutPlanInput): Promise<RolloutPreview>;
  /** Begins one, and does not wait for its end. */
  rolloutStart(plan: RolloutPlanInput): Promise<RolloutState>;
  rolloutStatus(): Promise<RolloutState>;
  rolloutPause(): Promise<RolloutState>;
  rolloutResume(): Promise<RolloutState>;
  rolloutAbort(all: boolean): Promise<RolloutState>;
  /** Streams the log until the connection ends. */
  follow(): Promise<void>;
}
export type Methods = Pick<Host, HostMethod> & DaemonMethods;
export type Method = keyof Methods;

export interface Request {
  id: number;
  method: Method;
  params: unknown[];
}
export type Stream = { fd: 1 | 2; data: string } | { entry: LogEntry };
export type Answer =
  | { id: number; result: unknown }
  | { id: number; error: { code: string; message: string } }
  | { id: number; stream: Stream };

export function send(socket: Socket, message: Request | Answer): void {
  if (socket.writable) socket.write(`${JSON.stringify(message)}\n`);
}

/** Calls `onMessage` for each line; `onGarbage` once when a line is no JSON object. */
export function receive(socket: Socket, onMessage: (message: unknown) => void, onGarbage: () => void): void {
  let rest = "";
  socket.setEncoding("utf8");
  socket.on("data", (text: string) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      let message: unknown;
      try {
        message = JSON.parse(line);
      } catch {
        onGarbage();
        return;
      }
      onMessage(message);
    }
  });
}
