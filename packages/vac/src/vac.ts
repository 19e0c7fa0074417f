/**
 * VAC as modules and the kernel see it, on one logical CPU. `attachVac` (attach.ts) makes one for each
 * CPU's thread over the same SharedArrayBuffer. Errors are negative errnos. Append-only: nothing here changes meaning or goes away.
 */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";

/** Claim of one loaded module, on all CPUs. Small positive integer, the same on every CPU. */
export type OwnerId = number & { readonly owner: unique symbol };

export interface LoadedVmcs {
  readonly vmcs: Hpa;
  readonly owner: OwnerId;
}

/** What a vCPU is tagged with on this CPU. One that was never assigned has generation 0. */
export interface AsidTag {
  asid: number;
  generation: number;
}

export interface Vac {
  readonly version: { readonly major: number; readonly minor: number };
  readonly cpu: LogicalCpu;

  /** Claims a module name; -EEXIST when taken. Idempotent over CPUs: every CPU's instance calls it with the same name. */
  registerOwner(moduleName: string): OwnerId | number;
  /** Gives back everything the owner holds on this CPU; the last CPU to do so ends the claim. */
  unregisterOwner(owner: OwnerId): void;

  /** First get on this CPU: CR4.VMXE and VMXON with VAC's own region, or EFER.SVME. Counted by owner. 0 or a negative errno. */
  enableVirtualization(owner: OwnerId): number;
  /** Last put: VMXOFF, after every loaded VMCS was cleared. */
  disableVirtualization(owner: OwnerId): void;
  /** Owners that hold virtualization enabled on this CPU. */
  virtualizationUsers(): readonly OwnerId[];
  /** Every owner's callback, then VMCLEAR of this CPU's loaded VMCSs, then VMXOFF or EFER.SVME off, whatever the counts. */
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

  // From 1.1 on: SVM. `enableVirtualization` sets EFER.SVME and the host save area there, the last put clears them
  /**
   * Before each VMRUN of the vCPU with this tag, which is kept until the CPU's ASIDs begin anew: puts a new ASID into it when it is
   * of an older generation. True: this VMRUN has to flush every ASID's translations (TLB_CONTROL 1); `asidsFlushed` says that it did.
   */
  assignAsid(owner: OwnerId, tag: AsidTag): boolean;
  asidsFlushed(owner: OwnerId): void;
  /** TSC ratio MSR for guests of this owner (8.32 fixed point), until another owner's or the end of SVM; false: refused. */
  setTscRatio(owner: OwnerId, ratio: bigint): boolean;
  /** Called on this CPU before an emergency turns virtualization off, while it is still on; one for each owner. */
  onEmergency(owner: OwnerId, callback: () => void): void;

  // From 1.2 on: the CPU loses power and gets it back
  /**
   * Before this CPU loses power: as in an emergency, with host values of user-return MSRs restored as well, but gets stay counted,
   * and `resume` turns virtualization on for them again. No vCPU may be between its entry and its return to the kernel. From then
   * on until `resume`, gets fail with -EAGAIN.
   */
  suspend(): void;
  /** After it has power again. 0 or a negative errno: virtualization stays off then, as after an emergency. */
  resume(): number;
}
