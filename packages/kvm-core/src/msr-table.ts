/** MSRs whose whole state is in the vCPU: those of the VMCS, the local APIC, the TSC and kvmclock are the module's own. */
export interface MsrStore {
  /** undefined: no such MSR here, or it cannot be read. */
  read(index: number): bigint | undefined;
  /** "unknown": not in this store; "refused": #GP. `byHost`: KVM_SET_MSRS, which may write read-only ones. */
  write(index: number, value: bigint, byHost: boolean): "ok" | "unknown" | "refused";
  /** Ascending index, all that are not as after reset or that every VM sends. */
  save(): { index: number; data: bigint }[];
  restore(values: readonly { index: number; data: bigint }[]): string | undefined;
  reset(): void;
}
export type CreateMsrStore = (options: { isBootCpu: boolean }) => MsrStore;
/** KVM_GET_MSR_INDEX_LIST: those here and those that a module keeps elsewhere. */
export type MsrIndexList = readonly number[];
