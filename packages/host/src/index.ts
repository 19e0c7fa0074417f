export type { DaemonConnection } from "./cli/daemon-connection.ts";
export { connectDaemon } from "./cli/daemon-connection.ts";
export type { Host } from "./control/host.ts";
export { createHost } from "./control/host.ts";
export type { OutputListener, ProcessHandle } from "./control/process-handle.ts";
export type {
  CpuInfo,
  DeviceEntry,
  EngineReport,
  ExitStatus,
  HostOptions,
  InsmodOptions,
  LoadedModule,
  LogEntry,
  LogLevel,
  MigrationReport,
  MigrationStep,
  ModuleInfo,
  ModuleUser,
  MoveLimits,
  MoveReport,
  MoveStep,
  ProcessInfo,
  ResourceUsage,
  RestoreOptions,
  RunOptions,
  SavedProcess,
  SaveOptions,
  Statistic,
  StatisticKind,
  StatisticUnit,
  TimePart,
  UpgradeOptions,
  VmStatistics,
} from "./control/types.ts";
export { HostError } from "./errors.ts";
export { becomeHostProcess } from "./host-process.ts";
export { formatLogEntry } from "./log/kernel-log.ts";
export type { ReadAt, StatisticsFileContent } from "./statistics/binary-statistics.ts";
export { readBinaryStatistics } from "./statistics/binary-statistics.ts";
