/**
 * One CPU's scheduler. Tasks are chains of promises; a task runs from the moment the dispatcher resolves what it waits for
 * until it waits again, and is asked to give way when its slice is over. Dispatch goes through the event loop once per turn, so
 * control messages get through between slices, and an idle CPU sleeps in the event loop.
 */
import type { LogicalCpu, MachineDescription } from "@mkvm/hw-x86";
import type { Task, Timer, WaitQueue } from "@mkvm/kvm-abi";
import { CpuClock } from "./clock.ts";
import { TimerQueue } from "./timers.ts";

const wallSliceUs = 2000;
/** Where many tasks want to run their slices are shorter, down to a least, so that each has had its turn after this long. */
const wallRoundUs = 24_000;
const wallLeastSliceUs = 750;
/** A task that becomes runnable gets the CPU once the running one had this long. */
const wallGranularityUs = 500;
/** Under icount a slice is a number of instructions: some milliseconds of real time at the interpreter's rate. */
const icountSliceInstructions = 200_000;
const icountGranularityInstructions = 50_000;
/** Shorter waits than this are slept off exactly, outside the event loop: its timers have a grain of a millisecond. */
const preciseSleepMs = 2;
/** One that has had its turn so often without coming to rest is at work. */
const turnsToRest = 64;

/** What a task waits on; the scheduler's side of a `Task`. */
export interface Waiter extends Task {
  /** Ends the wait that is going on, if any. Set by whoever makes the task wait. */
  interruptWait: (() => void) | undefined;
}

/** Slice of a task, in ticks of the CPU's TSC. */
export interface Slice {
  readonly start: number;
  readonly end: number;
}

/** Something to go on with, in the run queue. */
export interface Runnable {
  readonly resume: () => void;
  /** The process. */
  readonly owner: object | undefined;
  readonly task: Task | undefined;
  /** What is left of a slice that was taken away from the task; undefined: it gets a new one. */
  readonly slice?: Slice;
}

export interface InstructionStop {
  /** The CPU's retired instructions at which to call. */
  readonly at: number;
  reached(): void;
}

/** Somebody who wants to know when none of an owner's tasks wants to run. */
interface RestWatch {
  readonly owner: object;
  readonly rested: () => void;
  turns: number;
}

export class CpuScheduler {
  readonly clock: CpuClock;
  readonly timers: TimerQueue;
  /** Whose turn it is: the process of the task that runs. */
  running: object | undefined;
  /** Whose tasks have their turns before all others': a process that stands still until they have had some. */
  favoured: object | undefined;
  /** The task that runs, or ran last. */
  runningTask: Task | undefined;
  readonly #cpu: LogicalCpu;
  readonly #ticksPerInstruction: number;
  /** Slice of a task where few others want to run; its least, and what a round of all tasks is to take. */
  readonly #sliceTicks: number;
  readonly #leastSliceTicks: number;
  readonly #roundTicks: number;
  readonly #granularityTicks: number;
  readonly #runnable: Runnable[] = [];
  readonly #stops: InstructionStop[] = [];
  #restWatches: RestWatch[] = [];
  readonly #sleepCell = new Int32Array(new SharedArrayBuffer(4));
  #sliceStart = 0;
  #sliceEnd = 0;
  /** The dispatch that is to come. */
  #dispatchPending: NodeJS.Immediate | "soon" | undefined;
  /** How many of the next turns come without a look at the event loop. */
  #soon = 0;
  #sleep: NodeJS.Timeout | undefined;
  #idleHolds = 0;
  #stopped = false;
  /** Callers of `pause` that have not called `unpause`. */
  #pauses = 0;

  constructor(cpu: LogicalCpu, machine: MachineDescription) {
    this.#cpu = cpu;
    this.clock = new CpuClock(cpu, machine);
    this.#ticksPerInstruction = machine.ticksPerInstruction;
    const icount = machine.clock === "icount";
    const wallTicks = (us: number): number => (us * machine.tscKhz) / 1000;
    const instructionTicks = (count: number): number => count * machine.ticksPerInstruction;
    this.#sliceTicks = icount ? instructionTicks(icountSliceInstructions) : wallTicks(wallSliceUs);
    // Under icount a round is not felt: its time is the guests' own
    this.#leastSliceTicks = icount ? this.#sliceTicks : wallTicks(wallLeastSliceUs);
    this.#roundTicks = wallTicks(wallRoundUs);
    this.#granularityTicks = icount ? instructionTicks(icountGranularityInstructions) : wallTicks(wallGranularityUs);
    this.timers = new TimerQueue(() => this.#programTimer());
  }

  /** For the task that is about to run, beside what is runnable. */
  #freshSliceTicks(): number {
    const share = this.#roundTicks / (this.#runnable.length + 1);
    return Math.min(this.#sliceTicks, Math.max(this.#leastSliceTicks, share));
  }

  // For modules

  handleInterrupts(): void {
    this.timers.runDue(this.clock.monotonicNs());
    this.#runStops();
    this.#cpu.acknowledgeInterrupt();
    this.#programTimer();
  }

  needResched(): boolean {
    return this.#cpu.rdtsc() >= this.#sliceEnd;
  }

  singleTaskRunning(): boolean {
    return this.#runnable.length === 0;
  }

  yield(): Promise<void> {
    return new Promise((resolve) => this.makeRunnable(resolve));
  }

  createWaitQueue(): WaitQueue {
    return new TaskWaitQueue(this);
  }

  createTimer(expired: () => void): Timer {
    return this.timers.createTimer(expired);
  }

  // For the kernel

  /** Puts a continuation at the end of the run queue; owner and task default to whose turn it is. */
  makeRunnable(resume: () => void, owner = this.running, task = this.runningTask): void {
    this.#runnable.push({ resume, owner, task });
    const early = this.#sliceStart + this.#granularityTicks;
    if (early < this.#sliceEnd) {
      this.#sliceEnd = early;
      this.#programTimer();
    }
    this.#requestDispatch();
  }

  /** The slice of the task that runs. */
  get slice(): Slice {
    return { start: this.#sliceStart, end: this.#sliceEnd };
  }

  /** What waits for its turn, the next one first. */
  get runnable(): readonly Runnable[] {
    return this.#runnable;
  }

  /** Takes out of the run queue what `unwanted` says. */
  remove(unwanted: (entry: Runnable) => boolean): void {
    const others = this.#runnable.filter((entry) => !unwanted(entry));
    this.#runnable.splice(0, this.#runnable.length, ...others);
  }

  /** Puts entries at the front, in their order. No slice ends earlier for them. */
  putFirst(entries: readonly Runnable[]): void {
    this.#runnable.unshift(...entries);
    if (entries.length > 0) this.#requestDispatch();
  }

  /** As putFirst; and nothing comes between these turns, no event of Node's loop either: a VM that stands still waits for them. */
  putFirstSoon(entries: readonly Runnable[]): void {
    this.#runnable.unshift(...entries);
    this.#soon = entries.length;
    if (entries.length === 0 || this.#stopped || this.#pauses > 0) return;
    if (typeof this.#dispatchPending === "object") clearImmediate(this.#dispatchPending);
    this.#dispatchPending = undefined;
    this.#requestDispatch();
  }

  /** Sleeps `task` until `deadlineNs`, or until the task is interrupted. */
  sleepUntil(task: Waiter, deadlineNs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.createTimer(() => finish());
      const finish = () => {
        timer.cancel();
        task.interruptWait = undefined;
        this.makeRunnable(resolve, task.process, task);
      };
      task.interruptWait = finish;
      timer.arm(deadlineNs);
      this.#requestDispatch();
    });
  }

  /** Has `stop.reached` called, in interrupt context, when exactly `stop.at` instructions are retired (or at once, if passed). */
  addStop(stop: InstructionStop): void {
    this.#stops.push(stop);
    this.#stops.sort((a, b) => a.at - b.at);
    this.#programTimer();
  }

  removeStop(stop: InstructionStop): void {
    const at = this.#stops.indexOf(stop);
    if (at >= 0) this.#stops.splice(at, 1);
  }

  /**
   * Calls `rested` once, when none of the owner's tasks is runnable: each waits for something. One whose tasks always want to run has it
   * called after some turns.
   */
  whenAtRest(owner: object, rested: () => void): void {
    this.#restWatches.push({ owner, rested, turns: 0 });
    this.#requestDispatch();
  }

  /** Under icount, keeps idle time from passing while the kernel itself is at work over several turns. */
  holdIdle(): () => void {
    this.#idleHolds++;
    return () => {
      this.#idleHolds--;
      this.#requestDispatch();
    };
  }

  /** Under icount, lets the time up to `tsc` pass at once; the CPU has nothing to do. */
  windTo(tsc: number): void {
    if (!this.clock.isIcount || this.#cpu.rdtsc() >= tsc) return;
    this.#cpu.setTimerDeadline(tsc);
    this.#cpu.idle();
    this.#programTimer();
  }

  /** Nothing runs, and no timer expires, until as many calls of `unpause`. */
  pause(): void {
    this.#pauses++;
    clearTimeout(this.#sleep);
    this.#sleep = undefined;
  }

  unpause(): void {
    this.#pauses--;
    this.#requestDispatch();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#sleep);
  }

  #requestDispatch(): void {
    if (this.#dispatchPending !== undefined || this.#stopped || this.#pauses > 0) return;
    if (this.#sleep) {
      clearTimeout(this.#sleep);
      this.#sleep = undefined;
    }
    if (this.#soon === 0) {
      this.#dispatchPending = setImmediate(this.#dispatch);
      return;
    }
    this.#soon--;
    this.#dispatchPending = "soon";
    // Once no microtask is left: what the task before it had to do is done
    process.nextTick(this.#dispatch);
  }

  readonly #dispatch = (): void => {
    this.#dispatchPending = undefined;
    if (this.#stopped || this.#pauses > 0) return;
    this.timers.runDue(this.clock.monotonicNs());
    if (this.#restWatches.length > 0) this.#lookForRest();
    const next = this.#takeNext();
    this.running = next?.owner;
    this.runningTask = next?.task;
    if (!next) {
      this.#idle();
      return;
    }
    const now = this.#cpu.rdtsc();
    this.#sliceStart = next.slice?.start ?? now;
    this.#sliceEnd = next.slice?.end ?? now + this.#freshSliceTicks();
    this.#programTimer();
    next.resume();
    // The task's own steps run as microtasks after this; the next turn finds out what came of them.
    this.#requestDispatch();
  };

  #takeNext(): Runnable | undefined {
    const { favoured } = this;
    const first = favoured === undefined ? -1 : this.#runnable.findIndex(({ owner }) => owner === favoured);
    return first > 0 ? this.#runnable.splice(first, 1)[0] : this.#runnable.shift();
  }

  #lookForRest(): void {
    const watches = this.#restWatches;
    this.#restWatches = [];
    for (const watch of watches) {
      const isAtWork = this.#runnable.some(({ owner }) => owner === watch.owner);
      if (!isAtWork || watch.turns === turnsToRest) {
        watch.rested();
        continue;
      }
      if (this.#runnable[0]!.owner === watch.owner) watch.turns++;
      this.#restWatches.push(watch);
    }
  }

  #idle(): void {
    const nextNs = this.timers.nextNs;
    if (nextNs === Number.POSITIVE_INFINITY) return;
    if (this.clock.isIcount) {
      if (this.#idleHolds > 0) return;
      this.#cpu.setTimerDeadline(this.clock.tscOf(nextNs));
      this.#cpu.idle();
      this.#requestDispatch();
      return;
    }
    const waitMs = (nextNs - this.clock.monotonicNs()) / 1e6;
    if (waitMs < preciseSleepMs) {
      if (waitMs > 0) Atomics.wait(this.#sleepCell, 0, 0, waitMs);
      this.#requestDispatch();
      return;
    }
    this.#sleep = setTimeout(
      () => {
        this.#sleep = undefined;
        this.#requestDispatch();
      },
      Math.min(Math.floor(waitMs - 1), 0x7fff_ffff),
    );
  }

  #runStops(): void {
    while (this.#stops.length > 0 && this.#stops[0]!.at <= this.#cpu.retiredInstructions()) this.#stops.shift()!.reached();
  }

  /** Sets the CPU's one timer to what comes first: a timer, the end of the slice, an instruction stop. */
  #programTimer(): void {
    let deadline = this.#sliceEnd;
    const nextNs = this.timers.nextNs;
    if (nextNs !== Number.POSITIVE_INFINITY) deadline = Math.min(deadline, this.clock.tscOf(nextNs));
    const stop = this.#stops[0];
    if (stop) {
      const ahead = Math.max(0, stop.at - this.#cpu.retiredInstructions());
      deadline = Math.min(deadline, this.#cpu.rdtsc() + ahead * this.#ticksPerInstruction);
    }
    this.#cpu.setTimerDeadline(deadline);
  }
}

class TaskWaitQueue implements WaitQueue {
  readonly #scheduler: CpuScheduler;
  #waiting: (() => void)[] = [];

  constructor(scheduler: CpuScheduler) {
    this.#scheduler = scheduler;
  }

  wake(): void {
    if (this.#waiting.length === 0) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const finish of waiting) finish();
  }

  wait(task: Task): Promise<void> {
    const waiter = task as Waiter;
    return new Promise((resolve) => {
      const finish = () => {
        const at = this.#waiting.indexOf(finish);
        if (at >= 0) this.#waiting.splice(at, 1);
        waiter.interruptWait = undefined;
        this.#scheduler.makeRunnable(resolve, task.process, task);
      };
      if (task.signalPending() || task.workPending()) {
        this.#scheduler.makeRunnable(resolve, task.process, task);
        return;
      }
      this.#waiting.push(finish);
      waiter.interruptWait = finish;
    });
  }
}
