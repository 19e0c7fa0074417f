export { bankOf, type Gpa, type Gva, type Hpa, hpa, offsetOf } from "./addresses.ts";
export { type LogicalCpu, type VmxInstructions, VmxStatus } from "./logical-cpu.ts";
export type { MachineDescription, MachineOptions } from "./machine.ts";
export type { MemoryBank, PhysicalMemory } from "./physical-memory.ts";
