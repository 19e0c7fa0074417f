import { AmdCpu } from "./amd-cpu.ts";
import { Engine } from "./engine/engine.ts";
import { createIntelModel } from "./engine/system/cpuid.ts";
import { createAmdModel } from "./engine/system/cpuid-amd.ts";
import { IntelCpu } from "./intel-cpu.ts";
import type { LogicalCpu } from "./logical-cpu.ts";
import type { EngineFactory } from "./logical-cpu-core.ts";
import type { MachineDescription } from "./machine.ts";

/** The logical CPU `id` of the machine, on the calling thread; call once a thread. `log` receives what the hardware has to say. */
export function createLogicalCpu(machine: MachineDescription, id: number, log: (line: string) => void): LogicalCpu {
  const makeEngine: EngineFactory = (options) => new Engine({ ...options, translate: machine.engine });
  if (machine.vendor === "amd") return new AmdCpu(machine, id, createAmdModel(), makeEngine, log);
  return new IntelCpu(machine, id, createIntelModel(), makeEngine, log);
}
