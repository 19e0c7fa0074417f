/**
 * Between the kernel (host) and a KVM module. A module is an ES module whose default export is a `KernelModule`. It imports
 * nothing of the kernel at run time: `init` receives what it may use. Each logical CPU is a thread, and has an instance of its
 * own; what instances share lies in VAC. `Errno` results are negative numbers as Linux has them (errno.ts).
 *
 * @implementedBy says who makes the values of a type, where no function of this package tells: the ABI gate classifies changes by it.
 * It carries over to what the type's members take and return.
 */
import type { Transfer } from "./transfer.ts";

/** Host virtual address in a process: bytes, below 4 GiB, exact as a number. 0 is never mapped. */
export type Hva = number;
/** Host physical address in bytes (see hw-x86); a plain number here, since this package imports nothing. */
export type PhysicalAddress = number;

export type ParameterSpec =
  | { type: "int"; default: number; minimum: number; maximum: number; description: string }
  | { type: "bool"; default: boolean; description: string }
  | { type: "choice"; default: string; choices: readonly string[]; description: string };
export type ParameterValues = Readonly<Record<string, number | boolean | string>>;

/** What a module's package exports by default. @implementedBy module */
export interface KernelModule<Vac = unknown, Cpu = unknown> {
  /** One line, for modinfo. */
  readonly description: string;
  readonly parameters: Readonly<Record<string, ParameterSpec>>;
  /** A negative errno, or the instance. Must leave nothing behind when it fails. */
  init(kernel: Kernel<Vac, Cpu>): ModuleInstance | number;
}

export interface ModuleInstance {
  /** Character devices, one of them called "kvm": the kernel names the node `/dev/<name><id>`. */
  readonly devices: readonly { readonly name: string; readonly operations: FileOperations }[];
  readonly transfer: Transfer;
  /** Called once no file of the module is open. Gives back everything. */
  exit(): void;
}

/** What a module may use of the kernel on its logical CPU. `Vac` and `Cpu` are the types of those packages. */
export interface Kernel<Vac = unknown, Cpu = unknown> {
  /** Name of this instance, "kvm1"; unique on the host. */
  readonly moduleName: string;
  readonly parameters: ParameterValues;
  readonly vac: Vac;
  readonly cpu: Cpu;
  readonly clock: Clock;
  readonly memory: KernelMemory;
  readonly scheduler: Scheduler;
  log(level: "err" | "warn" | "info" | "debug", message: string): void;
}

export interface Clock {
  /** CLOCK_MONOTONIC in nanoseconds, a whole number below 2^53, derived from the CPU's TSC: the same under icount as in wall time. */
  monotonicNs(): number;
  /** CLOCK_REALTIME in nanoseconds since the epoch. Under icount a fixed start plus monotonicNs. */
  realtimeNs(): bigint;
  /** A timer on this CPU. `expired` runs in interrupt context: outside guest mode, never nested, must not block. */
  createTimer(expired: () => void): Timer;
}
export interface Timer {
  /** Monotonic nanoseconds; one shot; arming again replaces. */
  arm(deadlineNs: number): void;
  cancel(): void;
  /** undefined when not armed. */
  readonly deadlineNs: number | undefined;
}

/** Pages of a process's bank for the module's own use (VMCS, page tables, bitmaps, kvm_run), zeroed. */
export interface KernelMemory {
  /** `count` contiguous 4 KiB pages, aligned to `alignPages` pages (default 1). A negative errno (-ENOMEM) when there are none. */
  allocatePages(process: Process, count: number, alignPages?: number): PhysicalAddress;
  freePages(address: PhysicalAddress, count: number): void;
  /** A view of `length` bytes, not across the end of a bank. */
  bytes(address: PhysicalAddress, length: number): Uint8Array;
  /** Pages that belong to the CPU rather than to a process (VMXON regions). */
  allocateCpuPages(count: number): PhysicalAddress;
}

export interface Scheduler {
  /** Handles interrupts that are pending on this CPU: runs due timers, notes reschedules. Call after an external-interrupt exit. */
  handleInterrupts(): void;
  /** True when the running task should give way. */
  needResched(): boolean;
  /** True when nobody but the running task has a use for this CPU now: to give way, or to wait idly, would gain nothing. */
  singleTaskRunning(): boolean;
  /** Lets other tasks of this CPU run. */
  yield(): Promise<void>;
  createWaitQueue(): WaitQueue;
}
export interface WaitQueue {
  /** Wakes every waiter; wakes nobody in advance. */
  wake(): void;
  /** Resolves at the next wake, or when the task gets pending work. Check your condition again. */
  wait(task: Task): Promise<void>;
}

/** A thread of a process: who makes the system call. @implementedBy kernel */
export interface Task {
  readonly tid: number;
  readonly process: Process;
  /** A signal is pending: return -EINTR to user space (KVM_RUN sets exit_reason KVM_EXIT_INTR). */
  signalPending(): boolean;
  /** The kernel wants the task out of the module, as for an upgrade: return -ERESTARTSYS at an instruction boundary with
   *  everything saved in the file's own state; the call is made again later, perhaps on another module. */
  workPending(): boolean;
}

/** A process, with memory and files of its own. @implementedBy kernel */
export interface Process {
  readonly pid: number;
  readonly name: string;
  /** Number of the process's bank of physical memory. */
  readonly bank: number;
  readonly memory: UserMemory;
  /** A new descriptor over an anonymous file (anon_inode). Returns the fd, or a negative errno. */
  installFile(file: NewFile): number;
  /** The open file behind a descriptor. */
  file(fd: number): File | undefined;
  /** A reference to the eventfd behind a descriptor, to be released; -EBADF, or -EINVAL for a file of another kind. */
  eventfd(fd: number): Eventfd | number;
  /** A reference by `Eventfd.id`, which stays when the process goes on elsewhere. */
  eventfdById(id: number): Eventfd | undefined;
}

/** A module's reference to an eventfd: it lasts until it is released, whether the program has closed its descriptor or not. @implementedBy kernel */
export interface Eventfd {
  /** Unique in its process. */
  readonly id: number;
  /** Adds 1 to the counter and wakes those who read it. */
  signal(): void;
  /** Takes what a read would take: the counter, or 1 of it; 0n where it is 0. */
  take(): bigint;
  /** The result ends it. */
  watch(watcher: EventfdWatcher): () => void;
  release(): void;
}

/** @implementedBy module */
export interface EventfdWatcher {
  /** Something was added. Others may have taken it by now. */
  signalled(): void;
  /** The program's descriptor is gone. */
  closed(): void;
}

/** Flags of eventfd(2). */
export const EfdFlag = { EFD_SEMAPHORE: 0o1, EFD_NONBLOCK: 0o4000, EFD_CLOEXEC: 0o2000000 } as const;

/** Memory of a process as the kernel reaches it. */
export interface UserMemory {
  /** A copy of `length` bytes; undefined for EFAULT. */
  read(address: Hva, length: number): Uint8Array | undefined;
  /** false: EFAULT, nothing written. */
  write(address: Hva, bytes: Uint8Array): boolean;
  /** Physical address of a mapped user address; negative errno (-EFAULT) when not mapped. Contiguous user ranges that one mmap
   *  returned are contiguous in physical memory. */
  translate(address: Hva): PhysicalAddress;
  /** True when the whole range is mapped. */
  isMapped(address: Hva, length: number): boolean;
  /**
   * Has `unmapped` called before pages go back that user space gives up, however many: who has their physical addresses forgets these,
   * as with Linux's MMU notifiers. The result ends it.
   */
  watchUnmapped(unmapped: (address: Hva, length: number) => void): () => void;
}

export interface NewFile {
  /** As in /proc/PID/fd: "kvm-vm", "kvm-vcpu:0". */
  readonly name: string;
  readonly operations: FileOperations;
  readonly privateData: unknown;
}

/**
 * An open file. The kernel owns it; `privateData` and `operations` belong to the module behind it and change hands on an upgrade.
 * @implementedBy kernel
 */
export interface File {
  readonly name: string;
  readonly process: Process;
  operations: FileOperations;
  privateData: unknown;
}

/** What a module does with a file. @implementedBy module */
export interface FileOperations {
  /** Name of the module instance: what holds a reference while a file with these operations is open. */
  readonly owner: string;
  /** Device files only: 0 or a negative errno. */
  open?(file: File): number;
  /** `argument` is the call's third argument as an unsigned number; pointers are Hvas. A promise only when it must wait. */
  ioctl?(file: File, request: number, argument: number, task: Task): number | Promise<number>;
  /** Physical address of the pages to map: contiguous, allocated from the process's bank; or a negative errno. */
  mmap?(file: File, lengthBytes: number, offsetBytes: number): PhysicalAddress;
  /** read and pread: bytes put into `into` from `offsetBytes` on, 0 at and behind the end, or a negative errno. The position of
   *  read is the kernel's to keep, so that it stays when the file changes hands. */
  read?(file: File, into: Uint8Array, offsetBytes: number): number;
  /** The last descriptor is gone. */
  release?(file: File): void;
}
