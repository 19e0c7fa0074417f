/**
 * What version 1 asks of a vendor's virtualization extension: the one list of operations between the vendor-neutral files and
 * `vmx/` and `svm/`. All of them act on the logical CPU of the module instance.
 */
import type { DebugIntercepts, DescriptorTableState, ExceptionEvent, ExitOutcome, SegmentState } from "@mkvm/kvm-core";
import type { EntryFormat } from "./mmu/entry-format.ts";
import type { Vcpu } from "./vcpu.ts";
import type { Vm } from "./vm.ts";

export interface VendorOperations {
  readonly name: "vmx" | "svm";
  /** Of second-level page tables. */
  readonly format: EntryFormat;
  /** Cached translations by a VM's second-level tables are void. */
  flushSecondLevel(vm: Vm): void;

  /** Takes what a VM needs: 0 or a negative errno, nothing left behind then. */
  createVm(vm: Vm): number;
  destroyVm(vm: Vm): void;
  /** What exits for RDMSR and WRMSR follows the VM's filter. */
  msrFilterChanged(vm: Vm): void;
  /** Control structure, tag and state after reset: 0 or a negative errno. */
  createVcpu(vcpu: Vcpu): number;
  /** Gives back all of it. */
  freeVcpu(vcpu: Vcpu): void;
  /** Controls follow the guest's CPUID: an instruction that it does not have is undefined. */
  cpuidChanged(vcpu: Vcpu): void;

  /** Makes the control structure current, so that the accessors below reach it. */
  select(vcpu: Vcpu): void;
  /** Brings the guest's registers that entry and exit leave alone onto the CPU, and takes them off again. */
  load(vcpu: Vcpu): void;
  put(vcpu: Vcpu): void;

  readRip(vcpu: Vcpu): bigint;
  writeRip(vcpu: Vcpu, value: bigint): void;
  readRsp(vcpu: Vcpu): bigint;
  writeRsp(vcpu: Vcpu, value: bigint): void;
  readRflags(vcpu: Vcpu): bigint;
  writeRflags(vcpu: Vcpu, value: bigint): void;
  readSegment(vcpu: Vcpu, register: number): SegmentState;
  writeSegment(vcpu: Vcpu, register: number, state: SegmentState): void;
  readTable(vcpu: Vcpu, table: "gdtr" | "idtr"): DescriptorTableState;
  writeTable(vcpu: Vcpu, table: "gdtr" | "idtr", state: DescriptorTableState): void;
  readCr0(vcpu: Vcpu): bigint;
  writeCr0(vcpu: Vcpu, value: bigint): void;
  readCr3(vcpu: Vcpu): bigint;
  writeCr3(vcpu: Vcpu, value: bigint): void;
  readCr4(vcpu: Vcpu): bigint;
  writeCr4(vcpu: Vcpu, value: bigint): void;
  readEfer(vcpu: Vcpu): bigint;
  writeEfer(vcpu: Vcpu, value: bigint): void;
  readPdptrs(vcpu: Vcpu): readonly bigint[];
  writePdptrs(vcpu: Vcpu, values: readonly bigint[]): void;
  readDr7(vcpu: Vcpu): bigint;
  writeDr7(vcpu: Vcpu, value: bigint): void;
  /** MSRs that lie in the control structure; undefined: not one of them. */
  readMsr(vcpu: Vcpu, index: number): bigint | undefined;
  writeMsr(vcpu: Vcpu, index: number, value: bigint): boolean | undefined;
  writeTscOffset(vcpu: Vcpu, offset: bigint): void;

  /** Moves past the instruction that exited. */
  skip(vcpu: Vcpu, length: number): void;
  readInterruptShadow(vcpu: Vcpu): number;
  writeInterruptShadow(vcpu: Vcpu, shadow: number): void;
  readNmiMasked(vcpu: Vcpu): boolean;
  writeNmiMasked(vcpu: Vcpu, masked: boolean): void;
  readPendingDebug(vcpu: Vcpu): bigint;
  writePendingDebug(vcpu: Vcpu, value: bigint): void;

  /** What exits for a debugger. */
  interceptDebug(vcpu: Vcpu, wanted: DebugIntercepts): void;

  interruptAllowed(vcpu: Vcpu): boolean;
  nmiAllowed(vcpu: Vcpu): boolean;
  injectException(vcpu: Vcpu, event: ExceptionEvent): void;
  injectInterrupt(vcpu: Vcpu, vector: number, software: boolean): void;
  injectNmi(vcpu: Vcpu): void;
  /** Asks for an exit as soon as the guest can take an interrupt (NMI). */
  openInterruptWindow(vcpu: Vcpu): void;
  openNmiWindow(vcpu: Vcpu): void;

  /** Enters the guest, returns after the exit with events that were cut short queued again. */
  enter(vcpu: Vcpu): void;
  handleExit(vcpu: Vcpu): ExitOutcome;
  /** Cached translations of a guest's linear addresses are void. */
  flushGuestTlb(vcpu: Vcpu): void;
}
