/** The daemon as programs beside the command see it. */
import { connectDaemon as connectClient } from "./client.ts";

export interface DaemonConnection {
  /** Calls a method of the daemon's host, as `ps` or `upgrade`, with its parameters as plain data. */
  call(method: string, ...params: readonly unknown[]): Promise<unknown>;
  close(): void;
}

/**
 * The daemon of this user.
 * @throws HostError ENOENT when none runs
 */
export async function connectDaemon(): Promise<DaemonConnection> {
  return (await connectClient()) as unknown as DaemonConnection;
}
