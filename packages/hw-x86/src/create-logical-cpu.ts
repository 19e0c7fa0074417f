import { Engine } from "./engine/engine.ts";
import { createIntelModel } from "./engine/system/cpuid.ts";
import { IntelCpu } from "./intel-cpu.ts";
import type { LogicalCpu } from "./logical-cpu.ts";
import type { MachineDescription } from "./machine.ts";

/** The logical CPU `id` of the machine, on the calling thread; call once a thread. `log` receives what the hardware has to say. */
export function createLogicalCpu(machine: MachineDescription, id: number, log: (line: string) => void): LogicalCpu {
  return new IntelCpu(machine, id, createIntelModel(), (options) => new Engine({ ...options, translate: machine.engine }), log);
}
