/**
 * V8's background threads, which optimise code and help to collect. Node starts four of them, and on two cores they take turns with the CPUs'
 * threads: a Linux boot took 6 % longer than with two, and the first VM 9 MiB more, since each keeps memory of what it compiled. How many there are
 * can only be said when a process starts.
 */
import { availableParallelism } from "node:os";
import { isMainThread } from "node:worker_threads";

const option = "--v8-pool-size";

/** The option for a process that is to be a host, unless this one was given it: half of the cores' number, at least two. */
export function v8PoolWords(): string[] {
  const given = [...process.execArgv, ...(process.env.NODE_OPTIONS ?? "").split(/\s+/)];
  if (given.some((word) => word === option || word.startsWith(`${option}=`))) return [];
  return [`${option}=${Math.max(2, availableParallelism() >> 1)}`];
}

/** Starts this process anew with that option, where it needs it; all else of the process stays. */
export function restartWithV8Pool(): void {
  const words = v8PoolWords();
  if (words.length === 0 || !isMainThread || process.platform === "win32" || process.execve === undefined) return;
  process.execve(process.execPath, [process.execPath, ...words, ...process.execArgv, ...process.argv.slice(1)]);
}
