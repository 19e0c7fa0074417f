/**
 * VAC as modules and the kernel see it, on one logical CPU. `attachVac(shared, cpu, vmxonRegion)` (attach.ts) makes one for each
 * CPU's thread over the same SharedArrayBuffer. Errors are negative errnos. Append-only: nothing here changes meaning or goes away.
 */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";

/** Claim of one loaded module, on all CPUs. Small positive integer, the same on every CPU. */
export type OwnerId = number & { readonly owner: unique symbol };

export interface LoadedVmcs {
  readonly vmcs: Hpa;
  readonly owner: OwnerId;
}

export interface Vac {
  readonly version: { readonly major: number; readonly minor: number };
  readonly cpu: LogicalCpu;

  /** Claims a module name; -EEXIST when taken. Idempotent over CPUs: every CPU's instance calls it with the same name. */
  registerOwner(moduleName: string): OwnerId | number;
  /** Gives back everything the owner holds on this CPU; the last CPU to do so ends the claim. */
  unregisterOwner(owner: OwnerId): void;

  /** First get on this CPU: CR4.VMXE and VMXON with VAC's own region. Counted by owner. 0 or a negative errno. */
  enableVirtualization(owner: OwnerId): number;
  /** Last put: VMXOFF, after every loaded VMCS was cleared. */
  disableVirtualization(owner: OwnerId): void;
  /** Owners that hold virtualization enabled on this CPU. */
  virtualizationUsers(): readonly OwnerId[];
  /** Every owner's VMCLEAR of this CPU's loaded VMCSs first, then VMXOFF, whatever the counts. */
  emergencyDisable(): void;

  /** A VPID unique on the machine, never 0; 0 when none is left. Freed ones come back only after a flush of their tag. */
  allocateVpid(owner: OwnerId): number;
  freeVpid(owner: OwnerId, vpid: number): void;

  /** A slot for a user-return MSR, the same for every owner that asks for that MSR; -ENOSPC beyond 16 different ones. */
  registerUserReturnMsr(owner: OwnerId, msr: number): number;
  /** Value for guests of this owner, in force until `returnToUser` or another value; false: the MSR refuses it. */
  setUserReturnMsr(owner: OwnerId, slot: number, value: bigint): boolean;
  /** Restores host values of slots in flight. The kernel calls it before user code runs. */
  returnToUser(): void;

  /** VMPTRLD with book-keeping: VMCLEARs nothing, records the VMCS as loaded on this CPU. VMX status. */
  loadVmcs(owner: OwnerId, vmcs: Hpa): number;
  /** VMCLEAR with book-keeping. */
  clearVmcs(owner: OwnerId, vmcs: Hpa): number;
  loadedVmcss(): readonly LoadedVmcs[];

  /** The vCPU that this CPU runs: owner and an owner-chosen token, or undefined between runs. */
  setRunningVcpu(owner: OwnerId, token: number): void;
  clearRunningVcpu(owner: OwnerId): void;
  runningVcpu(cpu: number): { owner: OwnerId; token: number } | undefined;
}
