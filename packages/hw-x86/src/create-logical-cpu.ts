import { AmdCpu } from "./amd-cpu.ts";
import { Engine } from "./engine/engine.ts";
import { limitedToLevel } from "./engine/system/cpu-levels.ts";
import { createIntelModel } from "./engine/system/cpuid.ts";
import { createAmdModel } from "./engine/system/cpuid-amd.ts";
import type { RegionThread } from "./engine/translator/region-thread.ts";
import { IntelCpu } from "./intel-cpu.ts";
import type { LogicalCpu } from "./logical-cpu.ts";
import type { EngineFactory } from "./logical-cpu-core.ts";
import type { MachineDescription } from "./machine.ts";

/**
 * The logical CPU `id` of the machine, on the calling thread; call once a thread. `log` receives what the hardware has to say.
 * `regionThread`: the way to a thread that translates, with `translateRegion`; without it the calling thread does.
 */
export function createLogicalCpu(
  machine: MachineDescription,
  id: number,
  log: (line: string) => void,
  regionThread?: RegionThread,
): LogicalCpu {
  const makeEngine: EngineFactory = (options) => new Engine({ ...options, translate: machine.engine, regionThread });
  const whole = machine.vendor === "amd" ? createAmdModel() : createIntelModel();
  const model = limitedToLevel(whole, machine.cpuModel);
  return machine.vendor === "amd"
    ? new AmdCpu(machine, id, model, makeEngine, log)
    : new IntelCpu(machine, id, model, makeEngine, log);
}
