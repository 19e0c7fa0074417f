/**
 * What the control plane answers with. Plain data: it crosses threads and the daemon's socket as it is.
 */
import type { CpuModelName, EngineStatistics, MachineDescription } from "@mkvm/hw-x86";
import type { ParameterSpec, ParameterValues } from "@mkvm/kvm-abi";

export type LogLevel = "err" | "warn" | "info" | "debug";

/** A line of the kernel log. */
export interface LogEntry {
  /** Microseconds since the host started. */
  timeUs: number;
  level: LogLevel;
  /** Module ("kvm1"), "cpu0", or "host". */
  source: string;
  message: string;
}

/** A loaded module. */
export interface LoadedModule {
  name: string;
  id: string;
  package: string;
  version: string;
  /** Directory of the package. */
  directory: string;
  parameters: ParameterValues;
  devices: string[];
  users: ModuleUser[];
  /** It takes no new users, and is unloaded when the last one is gone. */
  draining?: true;
}

/** Who keeps a module from being unloaded. */
export interface ModuleUser {
  pid: number;
  process: string;
  /** Descriptor, or -1 when what holds the module is a move that was not finalised. */
  fd: number;
  /** "kvm-vm", "kvm-vcpu:0", "/dev/kvm1"; or why the module is held. */
  what: string;
}

export interface ModuleInfo {
  package: string;
  version: string;
  directory: string;
  description: string;
  /** Build-time id of the package. */
  id: string;
  requires: Record<string, string>;
  parameters: Record<string, ParameterSpec>;
  /** Names under which it is loaded now. */
  loadedAs: string[];
}

export type DeviceEntry =
  | { path: string; kind: "node"; module: string; device: string }
  | { path: string; kind: "link"; target: string }
  | { path: string; kind: "mount"; source: string };

export interface ProcessInfo {
  pid: number;
  name: string;
  cpu: number;
  state: "running" | "waiting" | "frozen" | "ending";
  /** What a module threw while it ran its VM, which runs no more. */
  fault?: string;
  threads: number;
  /** Modules behind its open files. */
  modules: string[];
  vms: number;
  /** Modules that the VM can still roll back to, last first: empty once finalised. */
  previous: string[];
  memoryBytes: number;
  /** Guest instructions retired by its CPU since the process started. */
  retiredInstructions: number;
  /** Seconds since it started. */
  uptimeS: number;
  /** Moves between modules that succeeded. */
  moves: number;
}

/**
 * What a CPU's thread spends time on. translated, interpreter: guest code; memory: accesses that miss the TLB; blocks: finding and
 * decoding code; helpers: instructions that are not generated code; events: faults and interrupts into the guest; vmx: VM entry,
 * VM exit and VMX instructions; module, program, kernel: the KVM module, the VMM, this package.
 */
export const timeParts = [
  "translated",
  "interpreter",
  "memory",
  "blocks",
  "translating",
  "helpers",
  "events",
  "vmx",
  "module",
  "program",
  "kernel",
  "garbage",
  "idle",
  "other",
] as const;
export type TimePart = (typeof timeParts)[number];

/**
 * A logical CPU of the machine. `offline`: taken out of use; `gone`: its thread ended, and does not come back; `silent`: its thread did not
 * answer in time, and has not since.
 */
export interface CpuInfo {
  cpu: number;
  state: "online" | "offline" | "suspended" | "gone" | "silent";
  /** Processes on it. */
  pids: number[];
}

/** What the engine did for a process, since its start. */
export interface EngineReport extends EngineStatistics {
  pid: number;
  seconds: number;
  retiredInstructions: number;
  /**
   * Milliseconds of the CPU's thread by part, from a sampling profile of one sample a millisecond; absent unless the process was
   * started with `profile`. Other processes on the CPU count too.
   */
  timeMs?: Record<TimePart, number>;
}

/** How a process ended. `status` is what its program returned; 137 when killed, 134 when it (or a module under it) threw. */
export interface ExitStatus {
  status: number;
  reason: "exited" | "killed" | "crashed";
  /** For "crashed": what was thrown. */
  message?: string;
}

export const moveSteps = ["check", "prepare", "freeze", "save", "restore", "verify", "commit", "thaw"] as const;
export type MoveStep = (typeof moveSteps)[number];

/** What a move between modules did. */
export interface MoveReport {
  pid: number;
  /** Empty when its CPU did not answer. */
  from: string;
  to: string;
  moved: boolean;
  finalised: boolean;
  /** When it began, microseconds since the host started: the log's time. The steps follow one another without gaps. */
  startedUs: number;
  /** Steps that were begun, in order. */
  steps: { step: MoveStep; durationUs: number }[];
  /** From the request that stops the vCPUs to the thaw, microseconds of real time; 0 when nothing was stopped. */
  blackoutUs: number;
  /** Bytes of all sections. */
  stateBytes: number;
  /** Guest instructions its CPU had retired since the process started, when the VM stood still. */
  retiredInstructions: number;
  /** Where and why it ended on the old module. */
  failed?: { step: MoveStep; reason: string };
}

export const migrationSteps = ["check", "prepare", "freeze", "restore", "thaw", "release"] as const;
export type MigrationStep = (typeof migrationSteps)[number];

/** What a move between logical CPUs did. */
export interface MigrationReport {
  pid: number;
  fromCpu: number;
  toCpu: number;
  /** Module that its VMs are on, on both. */
  module: string;
  moved: boolean;
  /** Steps that were begun, in order, microseconds of real time. `freeze` includes save, `restore` includes verify and commit. */
  steps: { step: MigrationStep; durationUs: number }[];
  /** From the request that stops the vCPUs to the first entry of a guest on the other CPU; 0 when nothing was stopped. */
  blackoutUs: number;
  /** Bytes of all sections. */
  stateBytes: number;
  /** Where and why it stayed. */
  failed?: { step: MigrationStep; reason: string };
  /** Of one that moved: why the CPU that it left did not give back what it had. */
  notReleased?: string;
}

/** How long parts of a move may take, milliseconds of real time. What takes longer ends the move, with the VM on its old module. */
export interface MoveLimits {
  /** For the new module to prepare, while the VM runs. */
  prepareMs: number;
  /** For all threads to come out of their modules, which look several times a slice. */
  freezeMs: number;
}

/** What VMs hold of the machine: equal figures before and after show that nothing leaked. */
export interface ResourceUsage {
  /** VPIDs that modules own, over all CPUs. */
  vpids: number;
  /** Timers that are armed, by module, over all CPUs. Modules with none are left out. */
  timers: Record<string, number>;
  processes: {
    pid: number;
    /** Pages of its memory that modules hold. */
    modulePages: number;
    /** Open descriptors of modules. */
    moduleFiles: number;
  }[];
}

export type StatisticKind = "cumulative" | "instant" | "peak" | "linear-histogram" | "log-histogram";
export type StatisticUnit = "none" | "bytes" | "seconds" | "cycles" | "boolean";

/** One statistic as its module describes it. Numbers are exact below 2 ** 53. */
export type Statistic = {
  name: string;
  unit: StatisticUnit;
  /** Numbers are in base ** exponent of the unit: 10 and -9 with seconds are nanoseconds. */
  base: 10 | 2;
  exponent: number;
} & (
  | { kind: "cumulative" | "instant" | "peak"; value: number }
  | {
      kind: "linear-histogram" | "log-histogram";
      /**
       * Events by size. Linear: bucket n has sizes from n * bucketSize on. Log: bucket 0 has zeros, bucket n sizes from
       * 2 ** (n - 1) on. The last bucket has all above.
       */
      buckets: number[];
      /** Linear histograms: width of a bucket. */
      bucketSize: number;
    }
);

/** Statistics of one VM, and of its vCPUs. docs/statistics.md lists those of this house's modules. */
export interface VmStatistics {
  pid: number;
  /** Name of the process. */
  process: string;
  /** Its descriptor of the VM. */
  fd: number;
  /** As the module names the VM: "kvm-1". */
  id: string;
  /** Module that the VM is on. */
  module: string;
  statistics: Statistic[];
  vcpus: { id: number; statistics: Statistic[] }[];
}

export interface HostOptions {
  /** Logical CPUs, 1 to 64; default 1. */
  cpus?: number;
  /** Default "wall". */
  clock?: "wall" | "icount";
  /** What the CPUs translate into WebAssembly: nothing, what runs often, or everything at first sight. Default: the environment's MKVM_ENGINE, else what runs often. */
  engine?: "off" | "hot" | "always";
  vendor?: "intel" | "amd";
  /** Which instruction sets its CPUs have: a level of the x86-64 ABI, or max, all there are, which is the default. */
  cpuModel?: CpuModelName;
  /** Where package names and relative paths are resolved from; default the working directory. */
  directory?: string;
  /** Default: 30 s to prepare, 2 s to stand still. */
  moveLimits?: Partial<MoveLimits>;
  /**
   * How long the thread of a CPU may take to answer before it counts as one that hangs, milliseconds; default 20 s. To start it may take as
   * many times as long as CPUs share a processor.
   */
  answerMs?: number;
  /** The machine itself, instead of one made from the options above. */
  machine?: MachineDescription;
  /** Entry of the CPUs' threads, instead of the host's own: for tests of the kernel without hardware. */
  cpuEntry?: URL;
}

export interface InsmodOptions {
  /** Instead of the package's build-time id: "1" yields module kvm1 and /dev/kvm1. */
  id?: string;
  parameters?: Readonly<Record<string, unknown>>;
  /** Where the spec is resolved from; default the host's. */
  directory?: string;
}

export interface RunOptions {
  /** Package name or path of a package that exports `main`; default "@mkvm/vmm". */
  program?: string;
  args: readonly string[];
  /** RAM of its guests in bytes; default what `--memory` in `args` says, else 256 MiB. */
  memoryBytes?: number;
  /** Logical CPU; default the one with the fewest processes. */
  cpu?: number;
  /** Bind mounts in its namespace. */
  mounts?: readonly { source: string; target: string }[];
  /** Moves when its CPU has retired that many instructions since the start; exact under icount. */
  moves?: readonly { at: number; to: string }[];
  /** Saves it, and ends it, when its CPU has retired that many instructions since the start; exact under icount. */
  save?: { at: number; path: string };
  /** Samples what its CPU's thread does, for `Host.engineReport`; costs a few percent. */
  profile?: boolean;
  name?: string;
  directory?: string;
}

export interface SaveOptions {
  pid: number;
  /** Relative to the working directory of the host. A file that is there is replaced, when the new one is whole. */
  path: string;
  /** Ends the process when it is saved; it runs on otherwise. */
  stop?: boolean;
}

/** What was saved. */
export interface SavedProcess {
  pid: number;
  path: string;
  /** Size of the file. */
  bytes: number;
  /** Bytes of memory that were not zero. */
  memoryBytes: number;
  /** How long the process stood still, microseconds of real time. */
  stillUs: number;
  /** Guest instructions its CPU had retired since the process started. */
  retiredInstructions: number;
}

export interface RestoreOptions {
  path: string;
  /** Loaded module; default the one that the device leads to which the program had opened. */
  module?: string;
  /** Logical CPU; default the one with the fewest processes. */
  cpu?: number;
  /** Saves it again, and ends it, when its CPU has retired that many instructions since the process first started. */
  save?: { at: number; path: string };
  /** Where the program's package is looked for; default the host's. */
  directory?: string;
}

export interface UpgradeOptions {
  pid: number | "all";
  /** Name of a loaded module. */
  to: string;
  /** Gives up the way back at once. */
  finalize?: boolean;
  /** Moves when the CPU has retired that many instructions since the process started, with the VM standing still meanwhile. */
  at?: number;
}
