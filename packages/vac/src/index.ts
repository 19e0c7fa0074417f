export type { LoadedVmcs, OwnerId, Vac } from "./vac.ts";
