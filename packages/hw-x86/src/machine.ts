import { hostTimeMs } from "./clock.ts";
import { CPU_MODELS, type CpuModelName } from "./engine/system/cpu-levels.ts";
import type { RegionThread } from "./engine/translator/region-thread.ts";
import { LINE_BYTES } from "./interrupt-lines.ts";
import type { LogicalCpu } from "./logical-cpu.ts";
import type { PciBus } from "./pci/bus.ts";
import { PCI_BYTES, PciRoot } from "./pci/pci-root.ts";

/** What a machine is. Plain data: it crosses to worker threads as it is, memory shared. */
export interface MachineDescription {
  readonly vendor: "intel" | "amd";
  /** Which instruction sets its CPUs have. */
  readonly cpuModel: CpuModelName;
  /** Of the kernel's own paging tables: CR4.LA57 of its CPUs, which cannot change in the mode that the kernel runs in. */
  readonly pagingLevels: 4 | 5;
  /** 1 to 64. */
  readonly cpus: number;
  readonly clock: "wall" | "icount";
  readonly tscKhz: number;
  /** icount: TSC ticks for each retired instruction. */
  readonly ticksPerInstruction: number;
  /** One cache line a CPU: interrupt lines and halted marks. */
  readonly shared: SharedArrayBuffer;
  /** What the functions on the PCI bus hold. */
  readonly devices: SharedArrayBuffer;
  /** Host time of power-on, milliseconds since the epoch: origin of every CPU's TSC under `wall`. */
  readonly poweredOnMs: number;
  /** What CPUs translate into WebAssembly: nothing, what runs often, or everything. */
  readonly engine: "off" | "hot" | "always";
}

export interface MachineOptions {
  vendor?: "intel" | "amd";
  /** Default: max, all there are. */
  cpuModel?: CpuModelName;
  /** Levels of the kernel's paging tables. Default: 4. */
  pagingLevels?: 4 | 5;
  cpus?: number;
  clock?: "wall" | "icount";
  /** Default: hot. */
  engine?: "off" | "hot" | "always";
}

export type CreateMachine = (options: MachineOptions) => MachineDescription;
/** See `createLogicalCpu`. */
export type CreateLogicalCpu = (
  machine: MachineDescription,
  id: number,
  log: (line: string) => void,
  regionThread?: RegionThread,
) => LogicalCpu;

/** Before there are CPUs nobody masters the bus. */
const NO_BUS: PciBus = { readMemory: () => undefined, writeMemory: () => false, writeMessage: () => false };

const MAXIMUM_CPUS = 64;
const TSC_KHZ = 2_000_000;
/** 10 ns of guest time an instruction at 2 GHz: a machine of 100 MIPS, about what the interpreter reaches, so that guests' timeouts
 *  and calibration loops behave under `icount` as they do in wall time. */
const TICKS_PER_INSTRUCTION = 20;

/** A machine that is powered on now. Defaults: Intel, one CPU, wall clock; the TSC runs at 2 GHz. Throws RangeError for what cannot be built. */
export function createMachine(options: MachineOptions = {}): MachineDescription {
  const cpus = options.cpus ?? 1;
  const vendor = options.vendor ?? "intel";
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > MAXIMUM_CPUS)
    throw new RangeError(`a machine has 1 to ${MAXIMUM_CPUS} CPUs, not ${cpus}`);
  if (vendor !== "intel" && vendor !== "amd") throw new RangeError(`no ${vendor} CPUs: intel and amd are there`);
  const devices = new SharedArrayBuffer(PCI_BYTES);
  new PciRoot(devices, NO_BUS).powerOn();
  const cpuModel = options.cpuModel ?? "max";
  if (!CPU_MODELS.includes(cpuModel)) throw new RangeError(`no CPU model ${cpuModel}: one of ${CPU_MODELS.join(", ")}`);
  const pagingLevels = options.pagingLevels ?? 4;
  if (pagingLevels !== 4 && pagingLevels !== 5)
    throw new RangeError(`a kernel's paging has 4 or 5 levels, not ${pagingLevels}`);
  return {
    vendor,
    cpuModel,
    pagingLevels,
    cpus,
    clock: options.clock ?? "wall",
    tscKhz: TSC_KHZ,
    ticksPerInstruction: TICKS_PER_INSTRUCTION,
    shared: new SharedArrayBuffer(cpus * LINE_BYTES),
    devices,
    poweredOnMs: hostTimeMs(),
    engine: options.engine ?? "hot",
  };
}
