export { attachVac } from "./attach.ts";
export { createVacMemory, VAC_VERSION } from "./layout.ts";
export type { LoadedVmcs, OwnerId, Vac } from "./vac.ts";
