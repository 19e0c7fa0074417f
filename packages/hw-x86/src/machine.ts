import type { LogicalCpu } from "./logical-cpu.ts";

/** What a machine is. Plain data: it crosses to worker threads as it is, memory shared. */
export interface MachineDescription {
  readonly vendor: "intel" | "amd";
  /** 1 to 64. */
  readonly cpus: number;
  readonly clock: "wall" | "icount";
  readonly tscKhz: number;
  /** icount: TSC ticks for each retired instruction. */
  readonly ticksPerInstruction: number;
  /** One cache line a CPU: interrupt lines and halted marks. */
  readonly shared: SharedArrayBuffer;
  /** Host time of power-on, milliseconds since the epoch: origin of every CPU's TSC under `wall`. */
  readonly poweredOnMs: number;
}

export interface MachineOptions {
  vendor?: "intel" | "amd";
  cpus?: number;
  clock?: "wall" | "icount";
}

export type CreateMachine = (options: MachineOptions) => MachineDescription;
/** The logical CPU `id` of the machine, on the calling thread; call once a thread. `log` receives what the hardware has to say. */
export type CreateLogicalCpu = (machine: MachineDescription, id: number, log: (line: string) => void) => LogicalCpu;
