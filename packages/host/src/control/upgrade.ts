/** Moves of VMs between modules, over all CPUs. */
import { HostError } from "../errors.ts";
import type { CpuSet } from "./cpu-set.ts";
import type { MoveReport, ProcessInfo, UpgradeOptions } from "./types.ts";

/**
 * Moves the VMs of one process, or of all that are not there yet: those of one CPU do not wait for another.
 * @throws HostError when the one cannot even begin; of many, the reports tell
 */
export async function upgrade(
  { pid, to, at, finalize: finalise = false }: UpgradeOptions,
  cpus: CpuSet,
  ps: () => Promise<ProcessInfo[]>,
): Promise<MoveReport[]> {
  const move = async (one: number) => cpus.of(one).client.request("move.to", { pid: one, to, at, finalise });
  if (pid !== "all") return [await move(pid)];
  const movable = (await ps()).filter(({ vms, modules }) => vms > 0 && !modules.every((module) => module === to));
  // What nobody tells of may have a VM to move
  const unheard = cpus.silent().flatMap(({ processes }) => [...processes].map((each) => ({ pid: each, modules: [] })));
  return Promise.all(
    [...movable, ...unheard].map(({ pid: one, modules: [from = ""] }) =>
      move(one).catch((thrown) => {
        if (!(thrown instanceof HostError)) throw thrown;
        return notBegun(one, from, to, thrown.message);
      }),
    ),
  );
}

function notBegun(pid: number, from: string, to: string, reason: string): MoveReport {
  return {
    pid,
    from,
    to,
    moved: false,
    finalised: false,
    startedUs: 0,
    steps: [],
    blackoutUs: 0,
    stateBytes: 0,
    retiredInstructions: 0,
    failed: { step: "check", reason },
  };
}
