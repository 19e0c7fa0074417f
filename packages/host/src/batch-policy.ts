/**
 * SCHED_BATCH, sched(7): a thread of it that wakes takes the processor from no other; it comes when the other's slice is over. Under Linux's
 * default policy a thread of V8's that is woken to optimise code runs at once, for a millisecond or more, instead of the CPU's thread that woke it:
 * in the middle of a move, while a VM stands still.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";

const normal = 0;

/** SCHED_NORMAL, SCHED_BATCH and so on, of sched.h: the 41st word of proc_pid_stat(5). The second one is in parentheses, and anything may be in them. */
function policyOfThread(): number {
  const stat = readFileSync("/proc/thread-self/stat", "latin1");
  const fromThird = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(fromThird[41 - 3]);
}

/**
 * Gives the threads that there are, and those that they make, that policy. Leaves alone what was chosen (`chrt`, `nice` is another matter), and does
 * nothing without the `chrt` of util-linux: Node has no call for it.
 */
export function joinBatchPolicy(): void {
  if (process.platform !== "linux" || policyOfThread() !== normal) return;
  spawnSync("chrt", ["--all-tasks", "--batch", "--pid", "0", String(process.pid)], { stdio: "ignore" });
}
