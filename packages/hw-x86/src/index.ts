export { bankOf, type Gpa, type Gva, type Hpa, hpa, offsetOf } from "./addresses.ts";
export { createLogicalCpu } from "./create-logical-cpu.ts";
export type { BlockStatistics } from "./engine/blocks.ts";
export { type EnginePart, type EngineStatistics, enginePartOfFrame } from "./engine/engine-statistics.ts";
export { prepareInterpreter } from "./engine/interpreter/instance.ts";
export { CPU_MODELS, type CpuFeature, type CpuModelName, featuresBeyond } from "./engine/system/cpu-levels.ts";
export {
  type RegionAnswer,
  type RegionRequest,
  type RegionThread,
  translateRegion,
} from "./engine/translator/region-thread.ts";
export type { TranslateMode, TranslatorStatistics } from "./engine/translator/translator.ts";
export type { DeviceAccess } from "./host-bus.ts";
export {
  type HardwareSanitizer,
  type LogicalCpu,
  type SvmInstructions,
  SvmStatus,
  type VmxInstructions,
  VmxStatus,
} from "./logical-cpu.ts";
export {
  type CreateLogicalCpu,
  type CreateMachine,
  createMachine,
  type MachineDescription,
  type MachineOptions,
} from "./machine.ts";
export type { MemoryBank, PhysicalMemory } from "./physical-memory.ts";
