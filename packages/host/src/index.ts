export type { Host } from "./control/host.ts";
export { createHost } from "./control/host.ts";
export type { OutputListener, ProcessHandle } from "./control/process-handle.ts";
export type {
  DeviceEntry,
  EngineReport,
  ExitStatus,
  HostOptions,
  InsmodOptions,
  LoadedModule,
  LogEntry,
  LogLevel,
  ModuleInfo,
  ModuleUser,
  MoveReport,
  MoveStep,
  ProcessInfo,
  RunOptions,
  Statistic,
  StatisticKind,
  StatisticUnit,
  TimePart,
  UpgradeOptions,
  VmStatistics,
} from "./control/types.ts";
export { HostError } from "./errors.ts";
export { formatLogEntry } from "./log/kernel-log.ts";
