/**
 * Collects a CPU thread's garbage when the CPU has fallen idle. V8 collects when a thread allocates: what a boot or a burst of work
 * left behind stays resident for as long as the guest then waits, tens of MiB for every CPU. A collection takes some milliseconds,
 * so it is made once after a time of work, when nobody wants the CPU any more, and only when there is something to gain: the timer
 * ticks of an idle guest never lead to another.
 */
import { performance } from "node:perf_hooks";
import { getHeapStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

const checkEveryMs = 1000;
/** A thread that worked for less than this part of the time since the last check is idle. */
const idleUtilization = 0.1;
/** A CPU has fallen idle when so many checks in a row found its thread idle. */
const idleChecks = 2;
/** Growth since the last collection that makes another worth it. */
const worthBytes = 4 << 20;

/** What the collection is decided by; tests give their own. */
export interface HeapSource {
  /** Part of the time since the last call that the thread was at work: 0 to 1. */
  utilization(): number;
  usedBytes(): number;
  collect(): void;
}

/** Returns what is to be called at every check. */
export function createIdleCollection(heap: HeapSource): () => void {
  let kept = 0;
  let quietChecks = 0;
  return () => {
    if (heap.utilization() > idleUtilization) {
      quietChecks = 0;
      return;
    }
    quietChecks++;
    if (quietChecks !== idleChecks || heap.usedBytes() - kept < worthBytes) return;
    heap.collect();
    kept = heap.usedBytes();
  };
}

/** Checks this thread from now on, without keeping it alive. */
export function collectWhenIdle(): void {
  // V8 has no other way to ask for a collection; a new context sees the flag, those that are there do not
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  let last = performance.eventLoopUtilization();
  const check = createIdleCollection({
    utilization: () => {
      const now = performance.eventLoopUtilization();
      const { utilization } = performance.eventLoopUtilization(now, last);
      last = now;
      return utilization;
    },
    usedBytes: () => {
      const { used_heap_size, external_memory } = getHeapStatistics();
      return used_heap_size + external_memory;
    },
    collect: () => gc(),
  });
  setInterval(check, checkEveryMs).unref();
}
