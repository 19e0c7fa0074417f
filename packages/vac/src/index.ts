export { attachVac } from "./attach.ts";
export { createVacMemory, VAC_VERSION } from "./layout.ts";
export { VAC_LAYOUT, type VacBlock } from "./layout-description.ts";
export type { LoadedVmcs, OwnerId, Vac } from "./vac.ts";
