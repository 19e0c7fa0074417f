import type { Process } from "@mkvm/kvm-abi";
import type { Waiter } from "../scheduler/scheduler.ts";

export interface UndeliveredResult {
  readonly fd: number;
  readonly request: number;
  readonly result: number;
}

/** A thread of a process. */
export class KernelTask implements Waiter {
  readonly tid: number;
  readonly process: Process;
  readonly name: string;
  interruptWait: (() => void) | undefined;
  /** The file whose module the task is inside of, between the call and its result. */
  insideOf: { readonly owner: string } | undefined;
  /** A KVM_RUN that has its result, which the task has not got yet: it waits for its turn, or for a thaw. */
  undelivered: UndeliveredResult | undefined;
  /** Descriptor of the KVM_RUN that the task is in, from when it waits or is made again to when its result is there to be taken. */
  running: number | undefined;
  finished = false;
  #signal = false;
  #work = false;

  constructor(tid: number, process: Process, name: string) {
    this.tid = tid;
    this.process = process;
    this.name = name;
  }

  signalPending(): boolean {
    return this.#signal;
  }

  workPending(): boolean {
    return this.#work;
  }

  /** Stays pending until a system call has returned -EINTR for it, so that a signal that comes just before KVM_RUN counts. */
  signal(): void {
    this.#signal = true;
    this.interruptWait?.();
  }

  signalDelivered(): void {
    this.#signal = false;
  }

  /** Asks the task out of its module. */
  requestWork(): void {
    this.#work = true;
    this.interruptWait?.();
  }

  workDone(): void {
    this.#work = false;
  }
}
