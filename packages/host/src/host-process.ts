import { joinBatchPolicy } from "./batch-policy.ts";
import { restartWithV8Pool } from "./v8-pool.ts";

/**
 * Makes this process one that serves a host best, at the beginning of a program that makes one: it starts anew with as many of V8's background
 * threads as do (not where `--v8-pool-size` was given, or where Node cannot: process.execve, Node 22.15, not on Windows), and on Linux its threads
 * come under SCHED_BATCH, so that none takes the processor from a VM that stands still for a move.
 */
export function becomeHostProcess(): void {
  // What is started anew keeps it
  joinBatchPolicy();
  restartWithV8Pool();
}
