/**
 * The registers and events of a vCPU, as code that no version has changed reaches them. Where and how a version keeps them (in
 * the VMCS, in a cache, ...) is its own affair. All methods are for a vCPU that is not in guest mode.
 */

import { Efer, SegmentRegister, Vector } from "../arch/registers.ts";

/** Numbers of LDTR and TR beside those of SegmentRegister. */
export const SystemSegment = { LDTR: 6, TR: 7 } as const;

export interface SegmentState {
  selector: number;
  base: bigint;
  /** Bytes, granularity applied. */
  limit: number;
  /** Access rights in the VMX format: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16. */
  access: number;
}
export interface DescriptorTableState {
  base: bigint;
  limit: number;
}

export interface ExceptionEvent {
  vector: number;
  /** undefined: the exception has none. */
  errorCode: number | undefined;
  /** CR2 for #PF, DR6 bits for #DB, when they are not yet in the register. */
  payload: bigint | undefined;
  /** Its delivery began and did not finish: an injection again, not a new exception. */
  injected: boolean;
  /** INT3, INTO, INT1: delivered with an instruction length. */
  software: boolean;
}

/** Events on their way to the guest. */
export interface EventState {
  exception: ExceptionEvent | undefined;
  /** External interrupt (or INT n, `software`) whose delivery began and did not finish, or that user space queued. */
  interrupt: { vector: number; software: boolean } | undefined;
  nmiInjected: boolean;
  /** 0 to 2. */
  nmiPending: number;
  /** Of the instruction behind a software event. */
  instructionLength: number;
  /** A fault on the way to #DF: the vCPU shuts down at its next entry. */
  tripleFault: boolean;
}

/** Interrupt shadow: bit 0 MOV SS, bit 1 STI (KVM_X86_SHADOW_INT_*). */
export type InterruptShadowBits = number;

export interface GuestCpu {
  readonly id: number;
  /** General register in encoding order, RSP included. */
  gpr(index: number): bigint;
  setGpr(index: number, value: bigint): void;
  /** The low 32 bits of one that is not RSP; setting them clears the upper half. */
  gpr32(index: number): number;
  setGpr32(index: number, value: number): void;
  rip: bigint;
  rflags: bigint;
  segment(register: number): SegmentState;
  setSegment(register: number, state: SegmentState): void;
  gdtr: DescriptorTableState;
  idtr: DescriptorTableState;

  /** CR0 and CR4 as the guest sees them. Setting installs the value without architectural checks. */
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  /** Setting keeps the vendor's notion of long mode in step with LMA. */
  efer: bigint;
  xcr0: bigint;
  /** PDPTEs that the processor has loaded; of use in PAE paging only. */
  pdptrs: readonly bigint[];
  /** 0 to 3, 6, 7. */
  debugRegister(index: number): bigint;
  setDebugRegister(index: number, value: bigint): void;
  /** x87, SSE and extended state: XSAVE_BYTES, standard format with 64-bit pointers; a copy. */
  xsave(): Uint8Array;
  xrstor(image: Uint8Array): void;

  /** MSRs that the hardware or VAC holds for the guest: SYSENTER_*, FS/GS/KERNEL_GS_BASE, STAR, LSTAR, CSTAR, FMASK, TSC_AUX, PAT, DEBUGCTL. */
  hardwareMsr(index: number): bigint | undefined;
  /** false: the hardware refuses the value. */
  setHardwareMsr(index: number, value: bigint): boolean;

  /** Guest TSC minus host TSC, modulo 2^64. */
  tscOffset: bigint;

  interruptShadow: InterruptShadowBits;
  nmiMasked: boolean;
  /** DR6 bits of debug exceptions that the hardware owes the guest. */
  pendingDebug: bigint;
  events(): EventState;
  setEvents(state: EventState): void;
  /** Queues an exception; a second one becomes #DF or a triple fault as the manual's table says. */
  queueException(vector: number, errorCode?: number, payload?: bigint): void;
}

/** Exceptions that push an error code outside real mode. */
export function exceptionHasErrorCode(vector: number): boolean {
  return vector === 8 || (vector >= 10 && vector <= 14) || vector === 17 || vector === 21;
}

/** What two exceptions in a row become (SDM 3A, "Interrupt 8 - Double Fault Exception (#DF)"). */
export function combineExceptions(first: number, second: number): "second" | "double" | "triple" {
  const contributory = (vector: number): boolean => vector === 0 || (vector >= 10 && vector <= 13);
  if (first === Vector.DF) return contributory(second) || second === Vector.PF ? "triple" : "second";
  if (contributory(first) && contributory(second)) return "double";
  if (first === Vector.PF && (contributory(second) || second === Vector.PF)) return "double";
  return "second";
}

export function cpl(cpu: GuestCpu): number {
  return (cpu.segment(SegmentRegister.SS).access >> 5) & 3;
}
export function in64BitMode(cpu: GuestCpu): boolean {
  return (cpu.efer & Efer.LMA) !== 0n && (cpu.segment(SegmentRegister.CS).access & 0x2000) !== 0;
}
