/**
 * Garbage of young objects, collected while VMs run rather than when one stands still. V8 collects when its nursery of some MiB is full,
 * for a millisecond or two: longer than a VM of one vCPU stands still for all else.
 */
import { getHeapSpaceStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Half of the nursery. A move of a VM with 16 vCPUs and its rehearsal fill 3 MiB, with one vCPU a tenth of that. */
const roomBytes = 4 << 20;

type Collect = (options: { type: "minor" }) => void;
let collect: Collect | undefined;

/** Makes sure of room for a move's objects: true when it had to collect for that. */
export function makeRoom(): boolean {
  const nursery = getHeapSpaceStatistics().find(({ space_name }) => space_name === "new_space");
  if (nursery === undefined || nursery.space_available_size >= roomBytes) return false;
  collect ??= exposedCollector();
  collect({ type: "minor" });
  return true;
}

/** V8 gives it to new contexts while its flag is set. */
function exposedCollector(): Collect {
  setFlagsFromString("--expose-gc");
  try {
    return runInNewContext("gc") as Collect;
  } finally {
    setFlagsFromString("--no-expose-gc");
  }
}
