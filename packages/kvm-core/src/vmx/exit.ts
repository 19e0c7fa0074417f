/** A VM exit as the shared handlers see it: what the VMCS tells about it, and what a version does itself. */
import type { FaultOutcome } from "../guest/vcpu-parts.ts";

/** Exit-information fields; a version may read them from the VMCS each time or keep them. */
export interface VmxExit {
  /** Exit reason, with bit 31 for a failed entry. */
  readonly reason: number;
  readonly qualification: number;
  readonly instructionLength: number;
  readonly instructionInformation: number;
  readonly interruptionInformation: number;
  /** IDT-vectoring information. */
  readonly vectoringInformation: number;
  readonly guestPhysicalAddress: number;
}

/** What the handlers ask of the version. */
export interface VmxExitHost {
  readonly cpuId: number;
  /** EPT violation: maps what is to be mapped. */
  memoryFault(guestPhysicalAddress: number, write: boolean): FaultOutcome;
  closeInterruptWindow(): void;
  closeNmiWindow(): void;
  /** An interrupt of the host is pending. */
  hostInterrupt(): void;
  /** The exit has taken an NMI of the host's, which is to have it. */
  hostNmi(): void;
  /** The VMCS in words, for the log. */
  dump(): string;
}
