/** poll(2): which descriptors are ready, and waiting for one to be. */
import { Errno, PollEvent, type PollRequest } from "@mkvm/kvm-abi";
import { ConsoleFile, EventfdFile, type OpenFile } from "../devices/open-file.ts";
import type { KernelProcess } from "./process.ts";
import type { KernelTask } from "./task.ts";

const { POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL } = PollEvent;

/** Told of by poll whether they were asked for or not. */
const ALWAYS = POLLERR | POLLHUP | POLLNVAL;

/** What each descriptor is ready for, PollEvent bits; one that is negative is left out, as Linux does. */
function readiness(process: KernelProcess, requests: readonly PollRequest[]): number[] {
  return requests.map(({ fd, events }) => {
    if (fd < 0) return 0;
    const file = process.files.get(fd);
    return (file === undefined ? POLLNVAL : stateOf(process, file)) & (events | ALWAYS);
  });
}

function stateOf(process: KernelProcess, file: OpenFile): number {
  if (file instanceof EventfdFile) {
    const { count, largest } = file.counter;
    return (count > 0n ? POLLIN : 0) | (count < largest - 1n ? POLLOUT : 0) | (count === largest ? POLLERR : 0);
  }
  if (!(file instanceof ConsoleFile)) return POLLIN | POLLOUT;
  if (file.stream !== 0) return POLLOUT;
  const { isReadable, hasEnded } = process.input;
  return (isReadable ? POLLIN : 0) | (hasEnded ? POLLHUP : 0);
}

/**
 * Resolves with what each is ready for once one is, with zeros after `timeoutNs` (undefined: it never is too late), with a negative
 * errno after a signal, or not at all when the process ends (`never`).
 */
export async function poll(
  process: KernelProcess,
  task: KernelTask,
  requests: readonly PollRequest[],
  timeoutNs: number | undefined,
  never: () => Promise<never>,
): Promise<number[] | number> {
  const { clock } = process.kernel.scheduler;
  const deadlineNs = timeoutNs === undefined ? undefined : clock.monotonicNs() + Math.max(0, timeoutNs);
  for (;;) {
    const ready = readiness(process, requests);
    if (ready.some((events) => events !== 0) || (deadlineNs !== undefined && clock.monotonicNs() >= deadlineNs)) return ready;
    if (task.signalPending()) return -Errno.EINTR;
    await changed(process, task, requests, deadlineNs);
    if (process.ending) return never();
    if (process.frozen) await process.thawed(task);
    if (process.ending) return never();
  }
}

/** Resolves, in the task's turn, when something happened to one of the descriptors, at the deadline, or when the task is interrupted. */
function changed(
  process: KernelProcess,
  task: KernelTask,
  requests: readonly PollRequest[],
  deadlineNs: number | undefined,
): Promise<void> {
  const { scheduler } = process.kernel;
  return new Promise((resolve) => {
    const undo: (() => void)[] = [];
    let isOver = false;
    const finish = () => {
      if (isOver) return;
      isOver = true;
      for (const each of undo) each();
      task.interruptWait = undefined;
      scheduler.makeRunnable(resolve, process, task);
    };
    for (const { fd } of requests) {
      const file = process.files.get(fd);
      if (file instanceof EventfdFile) undo.push(file.counter.onChange(finish));
      if (file instanceof ConsoleFile && file.stream === 0) undo.push(process.onInput(finish));
    }
    if (deadlineNs !== undefined) {
      const timer = scheduler.createTimer(finish);
      undo.push(() => timer.cancel());
      timer.arm(deadlineNs);
    }
    task.interruptWait = finish;
  });
}
