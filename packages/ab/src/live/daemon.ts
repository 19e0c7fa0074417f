/** What live comparisons ask of the daemon. */
import {
  connectDaemon,
  type LoadedModule,
  type MoveReport,
  type ProcessInfo,
  type UpgradeOptions,
  type VmStatistics,
} from "@mkvm/host";

interface DaemonMethods {
  hello(): { clock: string };
  lsmod(): LoadedModule[];
  ps(): ProcessInfo[];
  statistics(pid: number): VmStatistics[];
  upgrade(options: UpgradeOptions): MoveReport[];
  rollback(pid: number): MoveReport;
}

export interface Daemon {
  call<Method extends keyof DaemonMethods>(
    method: Method,
    ...params: Parameters<DaemonMethods[Method]>
  ): Promise<ReturnType<DaemonMethods[Method]>>;
  close(): void;
}

/** @throws HostError when none runs */
export async function findDaemon(): Promise<Daemon> {
  return (await connectDaemon()) as unknown as Daemon;
}
