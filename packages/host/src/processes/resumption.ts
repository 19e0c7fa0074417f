/**
 * Threads of a process that goes on from an image, in the order in which they stood still. The program makes its threads anew, in its
 * own order; each is held where it takes up what it did, and when all have come that far they go on as the scheduler had them: under
 * icount the vCPUs of a VM then interleave as they would have without.
 */
import type { Runnable } from "../scheduler/scheduler.ts";
import type { KernelProcess } from "./process.ts";
import type { KernelTask } from "./task.ts";

/**
 * A thread that had the CPU, or waited for its turn: in KVM_RUN of a descriptor, or outside of modules under its name. The first one is
 * the next. Threads that waited for something else have none.
 */
export interface SavedTurn {
  readonly fd?: number | undefined;
  readonly thread?: string | undefined;
  /** What is left of a slice, in ticks from the moment at which the process stood still; undefined: it gets a new one. */
  readonly slice?: { readonly start: number; readonly end: number } | undefined;
}

export class Resumption {
  readonly #process: KernelProcess;
  readonly #turns: readonly SavedTurn[];
  readonly #ended: () => void;
  readonly #releaseIdle: () => void;
  readonly #held = new Map<SavedTurn, { task: KernelTask; resume: () => void }>();
  /** In a call that has no turn: it waited there, and waits again before anybody could end that. */
  readonly #waited: Runnable[] = [];

  /** Its first thread is runnable by now. `ended` is called when the threads go on. */
  constructor(process: KernelProcess, turns: readonly SavedTurn[], ended: () => void) {
    const { scheduler } = process.kernel;
    this.#process = process;
    this.#turns = turns;
    this.#ended = ended;
    this.#releaseIdle = scheduler.holdIdle();
    // All have come as far as they get when none wants to run
    scheduler.whenAtRest(process, () => this.#goOn());
  }

  /** Resolves when it is the turn of a thread that makes KVM_RUN of the descriptor. */
  turnOf(task: KernelTask, fd: number): Promise<void> {
    return new Promise((resume) => {
      const turn = this.#free((each) => each.fd === fd);
      if (turn) this.#held.set(turn, { task, resume });
      else this.#waited.push({ resume, owner: this.#process, task });
    });
  }

  /** True when a thread of that name waited for its turn: `resume` is called when that comes. */
  holdsStart(task: KernelTask, resume: () => void): boolean {
    const turn = this.#free((each) => each.fd === undefined && each.thread === task.name);
    if (turn) this.#held.set(turn, { task, resume });
    return turn !== undefined;
  }

  #free(matches: (turn: SavedTurn) => boolean): SavedTurn | undefined {
    return this.#turns.find((turn) => matches(turn) && !this.#held.has(turn));
  }

  #goOn(): void {
    const { scheduler, cpu } = this.#process.kernel;
    const now = cpu.rdtsc();
    const inTurn = this.#turns.flatMap((turn): Runnable[] => {
      const held = this.#held.get(turn);
      if (held === undefined) return [];
      const { slice } = turn;
      return [{ ...held, owner: this.#process, ...(slice && { slice: { start: now + slice.start, end: now + slice.end } }) }];
    });
    this.#ended();
    scheduler.putFirst([...this.#waited, ...inTurn]);
    this.#releaseIdle();
  }
}
