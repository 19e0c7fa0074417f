/** A process on one CPU: its bank, descriptors, threads, console; standing still for a move, and its end. */

import type { ProgramState, Section, WaitQueue } from "@mkvm/kvm-abi";
import { Errno, type Eventfd, type File, Ioctl, type NewFile, type Process } from "@mkvm/kvm-abi";
import type { ExitStatus, TimePart, VmStatistics } from "../control/types.ts";
import type { MountNamespace } from "../devices/device-tree.ts";
import { ConsoleFile, EventfdFile, ModuleFile, type OpenFile, RegularFile } from "../devices/open-file.ts";
import { HostError, messageOf, stackOf } from "../errors.ts";
import type { BankUserMemory } from "../memory/user-memory.ts";
import { within } from "../patience.ts";
import { statisticsOfProcess } from "../statistics/vm-statistics.ts";
import type { CpuKernel } from "../worker/cpu-kernel.ts";
import type { ConsoleInput, ConsoleOutput } from "./console.ts";
import { ProcessEventfds } from "./eventfds.ts";
import { Freeze } from "./freeze.ts";
import { Resumption, type SavedTurn } from "./resumption.ts";
import { KernelTask, type UndeliveredResult } from "./task.ts";

const mostDescriptors = 4096;
export const killedStatus = 137;
export const crashedStatus = 134;

/** Something that a process stands still for, one at a time. */
export interface Standstill {
  /** What the process is doing, as in "process 1 is ...". */
  readonly doing: string;
  /** Module that its VMs are to be on. */
  readonly module?: string;
  /** Settles when it is over. */
  readonly done: Promise<unknown>;
}

/** What a process takes up that went on elsewhere before. */
export interface TakenUp {
  /** Of its program. */
  readonly sections: readonly Section[];
  readonly undelivered: readonly UndeliveredResult[];
  readonly turns: readonly SavedTurn[];
  readonly retired: number;
}

export class KernelProcess implements Process {
  readonly pid: number;
  readonly name: string;
  readonly args: readonly string[];
  readonly bank: number;
  readonly memory: BankUserMemory;
  readonly mounts: MountNamespace;
  readonly input: ConsoleInput;
  readonly output: ConsoleOutput;
  readonly inputArrived: WaitQueue;
  readonly #inputListeners = new Set<() => void>();
  readonly kernel: CpuKernel;
  startedMs = Date.now();
  /** What its CPU had retired when it started, less what it retired before it was saved. */
  startRetired: number;
  /** How the program takes part in being saved; undefined until it says so. */
  #programState: (() => ProgramState) | undefined;
  #onProgramState: () => void = () => {};
  /** Of the program that this one takes up. */
  restoredSections: readonly Section[] | undefined;
  /** Results of KVM_RUN that threads had not got when the process was saved. */
  #undelivered: UndeliveredResult[];
  /** The order of its threads when it stood still. */
  #savedTurns: readonly SavedTurn[] | undefined;
  #resumption: Resumption | undefined;
  /** Module that its VMs are on, of one that is on its way to this CPU. */
  arrivesOn: string | undefined;
  /** Calls of a module's `prepare` for it that have not come back, also those that were given up. */
  readonly preparing = new Set<Promise<unknown>>();
  readonly tasks = new Set<KernelTask>();
  readonly files = new Map<number, OpenFile>();
  readonly eventfds = new ProcessEventfds(this);
  /** Modules that the VM can go back to, the latest last; empty once finalised. */
  previous: string[] = [];
  /** Where the last finalise left the VM. */
  finalisedOn: string | undefined;
  /** What goes on that it stands still for, or will: a move, being saved, sleep. */
  standstill: Standstill | undefined;
  moves = 0;
  /** Times of its CPU's thread at its start, when the process is profiled. */
  profiled: ReadonlyMap<TimePart, number> | undefined;
  /** Called when the process has ended. */
  readonly atEnd = new Set<() => void>();
  /** Called when it begins to end. */
  readonly atEnding = new Set<() => void>();
  ending: ExitStatus | undefined;
  #freeze: Freeze | undefined;
  #ended = false;
  #lastTid: number;

  constructor(parts: {
    pid: number;
    name: string;
    args: readonly string[];
    memory: BankUserMemory;
    mounts: MountNamespace;
    input: ConsoleInput;
    output: ConsoleOutput;
    kernel: CpuKernel;
    /** It goes on from one that was saved. */
    saved?: TakenUp;
  }) {
    this.pid = parts.pid;
    this.name = parts.name;
    this.args = parts.args;
    this.memory = parts.memory;
    this.bank = parts.memory.bank.id;
    this.mounts = parts.mounts;
    this.input = parts.input;
    this.output = parts.output;
    this.kernel = parts.kernel;
    this.startRetired = parts.kernel.cpu.retiredInstructions() - (parts.saved?.retired ?? 0);
    this.restoredSections = parts.saved?.sections;
    this.#undelivered = [...(parts.saved?.undelivered ?? [])];
    this.#savedTurns = parts.saved?.turns;
    this.inputArrived = parts.kernel.scheduler.createWaitQueue();
    this.input.onArrival(() => {
      this.inputArrived.wake();
      for (const listener of [...this.#inputListeners]) listener();
    });
    this.#lastTid = this.pid * 1000 - 1;
    for (const stream of [0, 1, 2] as const) this.files.set(stream, new ConsoleFile(stream));
  }

  // Descriptors

  install(file: OpenFile): number {
    for (let fd = 3; fd < mostDescriptors; fd++) {
      if (!this.files.has(fd)) {
        this.files.set(fd, file);
        return fd;
      }
    }
    return -Errno.EMFILE;
  }

  installFile(file: NewFile): number {
    return this.install(new ModuleFile(file.name, this, file.operations, file.privateData));
  }

  file(fd: number): File | undefined {
    const file = this.files.get(fd);
    return file instanceof ModuleFile ? file : undefined;
  }

  eventfd(fd: number): Eventfd | number {
    return this.eventfds.behind(fd);
  }
  eventfdById(id: number): Eventfd | undefined {
    return this.eventfds.byId(id);
  }

  close(fd: number): number {
    const file = this.files.get(fd);
    if (!file) return -Errno.EBADF;
    this.files.delete(fd);
    if (file instanceof RegularFile) file.close();
    if (file instanceof EventfdFile) this.eventfds.closed(file);
    if (file instanceof ModuleFile) {
      try {
        file.operations.release?.(file);
      } catch (thrown) {
        this.crash(file.operations.owner, thrown);
      }
      this.kernel.released(file.operations.owner);
    }
    return 0;
  }

  /** Open files of modules, by descriptor. */
  *moduleFiles(): Generator<[number, ModuleFile]> {
    for (const [fd, file] of this.files) if (file instanceof ModuleFile) yield [fd, file];
  }

  get programState(): (() => ProgramState) | undefined {
    return this.#programState;
  }
  set programState(state: (() => ProgramState) | undefined) {
    this.#programState = state;
    this.#onProgramState();
  }
  /** Resolves when the program takes part in being saved, or after so long: one that has just started loads its guest. */
  takesPart(limitMs: number): Promise<void> {
    if (this.#programState) return Promise.resolve();
    const taking = new Promise<void>((resolve) => {
      this.#onProgramState = resolve;
    });
    return within(taking, limitMs, () => {});
  }

  /** It goes on from another CPU, before its program runs here. */
  takeUp(from: TakenUp): void {
    this.restoredSections = from.sections;
    this.#undelivered = [...from.undelivered];
    this.#savedTurns = from.turns;
    this.startRetired = this.kernel.cpu.retiredInstructions() - from.retired;
  }

  /** It has gone to another CPU with all that it had: its threads here go no further, and nothing is given back. */
  depart(): void {
    this.ending = { status: 0, reason: "exited" };
    this.#ended = true;
    this.output.flush();
    for (const task of this.tasks) task.finished = true;
    this.tasks.clear();
    this.input.close();
  }

  /**
   * The result of the KVM_RUN that a thread had made when the process was saved, once; undefined where there is none. That call is made
   * again; others the program does not repeat, and their results would be taken for those of later calls that are not made then.
   */
  takeUndelivered(fd: number): number | undefined {
    if (this.#undelivered.length === 0) return undefined;
    const at = this.#undelivered.findIndex((each) => each.fd === fd && each.request === Ioctl.KVM_RUN);
    return at < 0 ? undefined : this.#undelivered.splice(at, 1)[0]!.result;
  }
  /** Results that no thread has got yet. */
  undelivered(): UndeliveredResult[] {
    return [...this.#undelivered, ...[...this.tasks].flatMap((task) => task.undelivered ?? [])];
  }

  /** `arrived` is called when input has come, or will come no more. The result ends it. */
  onInput(arrived: () => void): () => void {
    this.#inputListeners.add(arrived);
    return () => this.#inputListeners.delete(arrived);
  }

  /** Threads that have the CPU or wait for it, of a process that stands still. */
  turns(): readonly SavedTurn[] {
    // They are not there yet where they were
    if (this.#resumption) return this.#savedTurns!;
    const now = this.kernel.cpu.rdtsc();
    return (this.#freeze?.turns() ?? []).map(({ task, slice }) => ({
      ...(task.running === undefined ? { thread: task.name } : { fd: task.running }),
      ...(slice && { slice: { start: slice.start - now, end: slice.end - now } }),
    }));
  }

  /** Its program begins to run. One that is taken up goes on in the order in which it stood still, where time is instructions. */
  begins(): void {
    const turns = this.#savedTurns;
    if (turns === undefined || !this.kernel.scheduler.clock.isIcount) return;
    this.#resumption = new Resumption(this, turns, () => {
      this.#resumption = undefined;
    });
  }

  /** While threads of a process that was taken up come to where they stood still; undefined otherwise. */
  get resumption(): Resumption | undefined {
    return this.#resumption;
  }

  // Threads

  createTask(name: string): KernelTask {
    const task = new KernelTask(++this.#lastTid, this, name);
    if (this.#freeze) task.requestWork();
    this.tasks.add(task);
    return task;
  }

  taskFinished(task: KernelTask): void {
    task.finished = true;
    this.tasks.delete(task);
    this.settle();
  }

  // Standing still

  get frozen(): boolean {
    return this.#freeze !== undefined;
  }

  /**
   * Asks every thread out of the modules, runs `onStill` once the last one is out (at once, synchronously, in that thread's own
   * turn), then lets them go on. Resolves after the thaw; it has not run `onStill` when the process ends first.
   */
  freeze(onStill: () => void | Promise<void>): Promise<void> {
    return new Promise((resolve) => {
      this.#freeze = new Freeze(this, this.kernel.scheduler, onStill, resolve);
      for (const task of this.tasks) task.requestWork();
      this.#freeze.hurry();
      this.settle();
    });
  }

  /** Gives a freeze up whose threads did not all come out; false when `onStill` has begun. */
  cancelFreeze(): boolean {
    if (this.#freeze?.started) return false;
    this.#thaw();
    return true;
  }

  /** Threads that are inside a module. */
  tasksInside(): KernelTask[] {
    return [...this.tasks].filter((task) => task.insideOf);
  }

  /** Resolves when the process is not frozen. */
  thawed(task: KernelTask): Promise<void> {
    return this.#freeze?.wait(task) ?? Promise.resolve();
  }

  /** Called whenever a thread has left a module: the process may stand still now, or be able to end. */
  settle(): void {
    if (this.ending) {
      this.#finish();
      return;
    }
    const freeze = this.#freeze;
    if (!freeze || freeze.started || this.tasksInside().length > 0) return;
    const result = freeze.still();
    if (result) result.finally(() => this.#thaw());
    else this.#thaw();
  }

  #thaw(): void {
    const freeze = this.#freeze;
    if (!freeze) return;
    this.#freeze = undefined;
    for (const task of this.tasks) task.workDone();
    freeze.thaw();
  }

  // The end

  /** Begins the end; the first reason stays. */
  end(exit: ExitStatus): void {
    if (this.ending) return;
    this.ending = exit;
    for (const tell of this.atEnding) tell();
    for (const task of this.tasks) task.signal();
    this.input.close();
    if (this.#freeze && !this.#freeze.started) this.#thaw();
    this.#finish();
  }

  /** Something threw that the process depends on: it ends, nobody else. */
  crash(source: string, thrown: unknown): void {
    this.kernel.log("err", source, `exception, process ${this.pid} (${this.name}) ends: ${stackOf(thrown)}`);
    this.end({ status: crashedStatus, reason: "crashed", message: `${source}: ${messageOf(thrown)}` });
  }

  /**
   * A module threw while it ran a VM. What it had half done to the VM nobody knows, so the VM runs no more: its VMM gets
   * KVM_EXIT_INTERNAL_ERROR from each vCPU, -EIO from everything else, and other VMs go on. An earlier state is nothing to go
   * back to: guest memory has moved on since.
   */
  contain(file: ModuleFile, thrown: unknown): void {
    const { owner } = file.operations;
    this.kernel.log(
      "err",
      owner,
      `exception while running ${file.name} of process ${this.pid} (${this.name}), which runs no more: ${stackOf(thrown)}`,
    );
    const transfer = this.kernel.modules.get(owner)?.instance.transfer;
    for (const [, other] of this.moduleFiles()) {
      if (other.operations.owner === owner && transfer?.roleOf(other).kind !== "system") other.fault ??= messageOf(thrown);
    }
    for (const task of this.tasks) if (task.insideOf?.owner === owner) task.requestWork();
  }

  #finish(): void {
    if (this.#ended || !this.ending || this.tasksInside().length > 0 || this.standstill) return;
    this.#ended = true;
    const statistics = this.#lastStatistics();
    for (const fd of [...this.files.keys()].reverse()) this.close(fd);
    this.output.flush();
    this.kernel.processEnded(this, this.ending, statistics);
  }

  /** None when the module cannot tell, or what it says cannot be read: the process ends all the same. */
  #lastStatistics(): VmStatistics[] {
    try {
      return statisticsOfProcess(this);
    } catch (thrown) {
      const noneThere = thrown instanceof HostError && thrown.code === "ENOTTY";
      if (!noneThere) this.kernel.log("warn", "host", `no last statistics of process ${this.pid}: ${messageOf(thrown)}`);
      return [];
    }
  }
}
