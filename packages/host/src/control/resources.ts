/** What modules hold for VMs, over all CPUs. */
import { VAC_LAYOUT } from "@mkvm/vac";
import type { CpuSet } from "./cpu-set.ts";
import type { ResourceUsage } from "./types.ts";

/** In VAC's table of VPIDs: a byte from here on is a state, below an owner, 0 free. */
const firstVpidState = 0xfe;

export async function resourceUsage(vacShared: SharedArrayBuffer, cpus: CpuSet): Promise<ResourceUsage> {
  const { offset, count } = VAC_LAYOUT.blocks.find((block) => block.name === "vpids")!;
  const owners = new Uint8Array(vacShared, offset, count);
  const usage: ResourceUsage = {
    vpids: owners.filter((owner) => owner > 0 && owner < firstVpidState).length,
    timers: {},
    processes: [],
  };
  for (const { timers, processes } of await cpus.onAll((cpu) => cpu.client.request("cpu.resources", null))) {
    for (const [module, armed] of Object.entries(timers)) usage.timers[module] = (usage.timers[module] ?? 0) + armed;
    usage.processes.push(...processes);
  }
  return usage;
}
