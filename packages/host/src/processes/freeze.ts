/**
 * A process that stands still, and goes on as if it had not. Threads that are inside a module are asked out of it; those that wait
 * for their turn outside of one are kept from it. At the thaw all of them are where they were: waiting for what they waited for,
 * running for the rest of their slice, or in the run queue in the order of before. Under icount the vCPUs of a VM then interleave
 * as they would have without the move.
 */
import type { Task } from "@mkvm/kvm-abi";
import type { CpuScheduler, Runnable, Slice } from "../scheduler/scheduler.ts";
import type { KernelTask } from "./task.ts";

/** What a freeze looks at of its process. */
interface FrozenProcess {
  readonly tasks: ReadonlySet<KernelTask>;
}

export class Freeze {
  readonly #process: FrozenProcess;
  readonly #scheduler: CpuScheduler;
  readonly #onStill: () => void | Promise<void>;
  readonly #thawed: () => void;
  /** The thread that was in the middle of its slice, if one was, and that slice. */
  readonly #running: { task: Task; slice: Slice } | undefined;
  /** Entries of the process in the run queue before the freeze. */
  readonly #queue: readonly Runnable[];
  /** Those of threads outside of modules: they are not to run meanwhile. */
  readonly #held: ReadonlySet<Runnable>;
  /** Threads that came out and wait for the thaw. */
  readonly #waiting = new Map<Task, () => void>();
  started = false;

  /** `onStill` runs once no thread is inside a module; `thawed` is called at the thaw. */
  constructor(process: FrozenProcess, scheduler: CpuScheduler, onStill: () => void | Promise<void>, thawed: () => void) {
    this.#process = process;
    this.#scheduler = scheduler;
    this.#onStill = onStill;
    this.#thawed = thawed;
    const isOurs = (entry: Runnable) => entry.owner === process;
    this.#queue = scheduler.runnable.filter(isOurs);
    this.#held = new Set(this.#queue.filter(({ task }) => (task as KernelTask | undefined)?.insideOf === undefined));
    scheduler.remove((entry) => this.#held.has(entry));
    const task = scheduler.runningTask as KernelTask | undefined;
    const isRunning =
      task !== undefined &&
      process.tasks.has(task) &&
      task.insideOf !== undefined &&
      task.interruptWait === undefined &&
      !this.#queue.some((entry) => entry.task === task);
    if (isRunning) this.#running = { task, slice: scheduler.slice };
  }

  /** Lets the threads come out before the CPU does anything else. */
  hurry(): void {
    const ours = this.#scheduler.runnable.filter((entry) => entry.owner === this.#process);
    this.#scheduler.remove((entry) => entry.owner === this.#process);
    this.#scheduler.putFirstSoon(ours);
  }

  still(): void | Promise<void> {
    this.started = true;
    return this.#onStill();
  }

  /** Threads that have the CPU or wait for their turn, the next one first. */
  turns(): { task: KernelTask; slice: Slice | undefined }[] {
    const running = this.#running ? [this.#running] : [];
    const queued = this.#queue.flatMap(({ task, slice }) => (task === undefined ? [] : [{ task, slice }]));
    return [...running, ...queued].map(({ task, slice }) => ({ task: task as KernelTask, slice }));
  }

  /** Resolves at the thaw, when the thread's turn has come. */
  wait(task: Task): Promise<void> {
    return new Promise((resolve) => this.#waiting.set(task, resolve));
  }

  thaw(): void {
    const waiting = new Map(this.#waiting);
    const entryOf = (task: Task | undefined, slice?: Slice): Runnable[] => {
      const resume = task === undefined ? undefined : waiting.get(task);
      if (resume === undefined) return [];
      waiting.delete(task!);
      return [{ resume, owner: this.#process, task, ...(slice !== undefined && { slice }) }];
    };
    const running = entryOf(this.#running?.task, this.#running?.slice);
    const queued = this.#queue.flatMap((entry) => (this.#held.has(entry) ? [entry] : entryOf(entry.task, entry.slice)));
    // Who waited for something waits for it again before anybody could bring it about
    const waited = [...waiting.keys()].flatMap((task) => entryOf(task));
    // What else has become runnable meanwhile comes behind what was before it
    this.#scheduler.putFirst([...waited, ...running, ...queued]);
    this.#thawed();
  }
}
