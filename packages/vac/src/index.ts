export { attachVac } from "./attach.ts";
export { reclaimDeadCpu } from "./dead-cpu.ts";
export { createVacMemory, VAC_VERSION } from "./layout.ts";
export { VAC_LAYOUT, type VacBlock } from "./layout-description.ts";
export type { AsidTag, LoadedVmcs, OwnerId, Vac } from "./vac.ts";
