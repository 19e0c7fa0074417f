/**
 * What version 2 asks of a vendor's virtualization extension: the one list of operations between the vendor-neutral files and
 * `vmx/` and `svm/`.
 */
import type { DebugIntercepts, ExitOutcome } from "@mkvm/kvm-core";
import type { TdpFormat } from "./mmu/tdp-entry.ts";
import type { RegisterCache, RegisterNumber } from "./register-cache.ts";
import type { Vcpu } from "./vcpu.ts";
import type { Vm } from "./vm.ts";

/** An event for the next entry. */
export interface Injection {
  readonly kind: "exception" | "software-exception" | "interrupt" | "software-interrupt" | "nmi";
  readonly vector: number;
  readonly errorCode: number | undefined;
  /** Of the instruction behind a software event. */
  readonly instructionLength: number;
}

export interface VendorOperations {
  readonly name: "vmx" | "svm";
  /** Of second-level page tables. */
  readonly format: TdpFormat;
  /** Registers that a guest cannot change without an exit, as bits of the register cache. */
  readonly keptRegisters: number;
  /** Cached translations by a VM's second-level tables are void. */
  flushSecondLevel(vm: Vm): void;

  /** Where a vCPU's local APIC is to have its registers, for the processor to reach them; undefined: wherever it likes. */
  apicRegisters(vcpu: Vcpu): Uint8Array | undefined;
  /** The processor delivers the local APIC's interrupts by itself. */
  deliversApicInterrupts(vcpu: Vcpu): boolean;

  createVm(vm: Vm): number;
  destroyVm(vm: Vm): void;
  /** What exits for RDMSR and WRMSR follows the VM's filter. */
  msrFilterChanged(vm: Vm): void;
  /** Control structure and tag: 0 or a negative errno. */
  createVcpu(vcpu: Vcpu): number;
  freeVcpu(vcpu: Vcpu): void;
  /** Controls follow the guest's CPUID: an instruction that it does not have is undefined. */
  cpuidChanged(vcpu: Vcpu): void;

  /** One register between cache and control structure. */
  fetch(vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void;
  store(vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void;
  /** EFER was set: what the vendor keeps in step with long mode. */
  longModeChanged(cache: RegisterCache): void;
  /** MSRs in the control structure; undefined: not one of them. */
  msr(vcpu: Vcpu, index: number): bigint | undefined;
  setMsr(vcpu: Vcpu, index: number, value: bigint): boolean | undefined;

  interruptShadow(interruptibility: number): number;
  withInterruptShadow(interruptibility: number, shadow: number): number;
  nmiMasked(interruptibility: number): boolean;
  withNmiMasked(interruptibility: number, masked: boolean): number;

  /** The vCPU is about to run on this CPU, or stops doing so. */
  enterCpu(vcpu: Vcpu): void;
  leaveCpu(vcpu: Vcpu): void;
  /** What exits for a debugger. */
  interceptDebug(vcpu: Vcpu, wanted: DebugIntercepts): void;
  inject(vcpu: Vcpu, event: Injection): void;
  /** Which windows the next entry is to watch for. */
  watchWindows(vcpu: Vcpu, windows: { interrupt: boolean; nmi: boolean }): void;
  flushGuestTlb(vcpu: Vcpu): void;
  /** Runs the guest up to an exit. Events that were cut short are queued again, the register cache is void. */
  enter(vcpu: Vcpu): void;
  handleExit(vcpu: Vcpu): ExitOutcome;
}
