/**
 * Everything that crosses between the main thread and the thread of a logical CPU: requests with replies in one direction,
 * events in the other. Nothing else is posted on those ports.
 */
import type { MachineDescription, MemoryBank } from "@mkvm/hw-x86";
import type { ParameterSpec, ParameterValues, VmDescription } from "@mkvm/kvm-abi";
import type { SavedPackages } from "../saved/manifest.ts";
import type { ProcessImage } from "../saved/process-image.ts";
import type { RegionChannel } from "../worker/region-port.ts";
import type {
  DeviceEntry,
  EngineReport,
  ExitStatus,
  LogLevel,
  ModuleUser,
  MoveLimits,
  MoveReport,
  ProcessInfo,
  ResourceUsage,
  SavedProcess,
  VmStatistics,
} from "./types.ts";

/** workerData of a CPU's thread. */
export interface CpuBoot {
  cpu: number;
  machine: MachineDescription;
  /** VAC's shared state, over all CPUs. */
  vacShared: SharedArrayBuffer;
  /** Host start, milliseconds since the epoch with a fraction: origin of the log's time stamps. */
  startedMs: number;
  moveLimits: MoveLimits;
  /** Which requests were begun, and which given up. */
  progress: SharedArrayBuffer;
  /** To the thread that translates. */
  regions: RegionChannel;
}

export interface ModuleDescription {
  description: string;
  parameters: Record<string, ParameterSpec>;
}

export interface Mount {
  /** A path whose node is shown at `target` as well. */
  source: string;
  target: string;
}

export interface ProcessStart {
  pid: number;
  bank: number;
  name: string;
  /** URL of the program's entry. */
  program: string;
  args: string[];
  memoryBytes: number;
  mounts: Mount[];
  moves: { at: number; to: string }[];
  save: ProcessSave | undefined;
  profile: boolean;
}

export interface ProcessSave {
  pid: number;
  path: string;
  /** Of the program, and of every module by name, since only the CPU knows which one it is by then. */
  packages: { program: SavedPackages["program"]; modules: Record<string, { package: string; version: string }> };
  /** Instructions of its CPU since its start at which it is saved; undefined: now. */
  at: number | undefined;
  /** It ends when it is saved. */
  stop: boolean;
}

export interface ProcessRestore {
  pid: number;
  bank: number;
  path: string;
  /** Entry of the program's package. */
  program: string;
  /** Module to restore the VMs on; undefined: the one behind the device that the program had opened. */
  module: string | undefined;
  save: ProcessSave | undefined;
}

/** What the CPU that a process moves to is told while it still runs. */
export interface MigrationOffer {
  readonly pid: number;
  readonly name: string;
  readonly args: readonly string[];
  readonly startedMs: number;
  readonly bank: number;
  readonly memory: MemoryBank["memory"];
  /** Who holds each page of the bank: of use to the other CPU once this one has let go, or has died. */
  readonly pages: SharedArrayBuffer;
  /** Pages of the bank that the other CPU may have for its tables: the rest is still in use. */
  readonly reserved: { readonly offset: number; readonly count: number };
  readonly mounts: readonly (readonly [string, string])[];
  readonly module: string;
  readonly previous: readonly string[];
  readonly finalisedOn: string | undefined;
  readonly moves: number;
  readonly descriptions: readonly VmDescription[];
}

/** It stands still: its state, and when its vCPUs were asked to stop, in milliseconds since the epoch. */
export interface MigrationImage {
  readonly image: ProcessImage;
  readonly stoppedMs: number;
}

/** What the CPU that a process has left did with it at last: let go, or died before it had. */
export type LeftBehind = "released" | "dead";

interface Call<Params, Result> {
  params: Params;
  result: Result;
}

export interface CpuRequests {
  "module.describe": Call<{ url: string }, ModuleDescription>;
  /** Result: names of its devices. */
  "module.load": Call<{ name: string; url: string; parameters: ParameterValues }, string[]>;
  "module.users": Call<{ name: string }, ModuleUser[]>;
  /** Refuses new opens when nobody uses it; who does, otherwise. */
  "module.seize": Call<{ name: string }, ModuleUser[]>;
  "module.unseize": Call<{ name: string }, null>;
  /** Refuses new opens, or no longer does; `module.idle` tells when the last user is gone. */
  "module.drain": Call<{ name: string; draining: boolean }, null>;
  "module.unload": Call<{ name: string }, null>;
  "devices.set": Call<{ entries: DeviceEntry[] }, null>;
  "process.start": Call<ProcessStart, null>;
  "process.kill": Call<{ pid: number }, null>;
  "process.input": Call<{ pid: number; bytes: Uint8Array | null }, null>;
  "process.mount": Call<{ pid: number; mount: Mount }, null>;
  "process.engine": Call<{ pid: number }, EngineReport | null>;
  "process.list": Call<null, ProcessInfo[]>;
  "process.statistics": Call<{ pid: number }, VmStatistics[]>;
  /** Writes the process to a file; it stands still meanwhile. */
  "process.save": Call<ProcessSave, SavedProcess>;
  /** A process from such a file, in a bank of its own. */
  "process.restore": Call<ProcessRestore, { module: string }>;
  "move.to": Call<{ pid: number; to: string; at: number | undefined; finalise: boolean }, MoveReport>;
  /** Why not; null when the move could begin. */
  "move.check": Call<{ pid: number; to: string }, string | null>;
  "move.back": Call<{ pid: number }, MoveReport>;
  /** Result: modules that are no longer held. */
  "move.finalise": Call<{ pid: number }, string[]>;
  // A move to another CPU, in this order; "arrive.abort", "leave.stay" and "leave.free" take everything before "arrive.go" back, at any time
  "leave.offer": Call<{ pid: number; to: string }, MigrationOffer>;
  /** True when the process begins to end before it has gone, false when it has gone or stays. */
  "leave.ends": Call<{ pid: number }, boolean>;
  "arrive.prepare": Call<MigrationOffer & { program: string }, null>;
  /** The process stands still from about now on: the CPU is to have its thread free for it. */
  "arrive.await": Call<{ pid: number }, null>;
  "leave.still": Call<{ pid: number }, MigrationImage>;
  "arrive.restore": Call<{ pid: number; image: ProcessImage }, null>;
  /** Resolves when a vCPU's guest is entered, or when no thread wants to, with the time in milliseconds since the epoch. */
  "arrive.go": Call<{ pid: number }, number>;
  /** The CPU lets go of everything. `ending`: the process was to end there. */
  "leave.go": Call<{ pid: number }, { ending: boolean }>;
  /** Pages that the other CPU held until now are free. */
  "arrive.left": Call<{ pid: number; left: LeftBehind }, null>;
  "leave.stay": Call<{ pid: number }, null>;
  /** Resolves when nothing of the attempt is left on the CPU: not while its module is still preparing. */
  "arrive.abort": Call<{ pid: number }, null>;
  /** Gives the pages back that were set aside for the other CPU, which writes to them no more. */
  "leave.free": Call<{ pid: number; reserved: MigrationOffer["reserved"] }, null>;
  /** Tells that the thread comes back for more. */
  "cpu.ping": Call<null, null>;
  "cpu.resources": Call<null, Omit<ResourceUsage, "vpids">>;
  /** Processes stand still and the CPU loses power, until `cpu.resume`, which does nothing to a CPU that is awake. */
  "cpu.suspend": Call<null, null>;
  "cpu.resume": Call<null, null>;
  "cpu.stop": Call<null, null>;
}
export type CpuRequestName = keyof CpuRequests;

export type CpuEvent =
  | { event: "ready" }
  | { event: "log"; timeUs: number; level: LogLevel; source: string; message: string }
  | { event: "output"; pid: number; fd: 1 | 2; bytes: Uint8Array }
  /** `statistics`: of the VMs that were open to the end. `engine`: null when no guest ran. */
  | { event: "exited"; pid: number; exit: ExitStatus; statistics: VmStatistics[]; engine: EngineReport | null }
  /** A module that drains has no user on that CPU any more. */
  | { event: "module.idle"; name: string }
  | { event: "moved"; report: MoveReport };

export interface RequestMessage {
  id: number;
  name: CpuRequestName;
  params: unknown;
  /** Done even if it was given up before it began. */
  sure: boolean;
}
export type ReplyMessage = { id: number; result: unknown } | { id: number; error: { code: string; message: string } };
