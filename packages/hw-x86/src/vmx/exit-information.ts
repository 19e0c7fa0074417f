import { Interruption } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

/** What a VM exit will write into the exit-information fields; filled at the moment of the decision, reused. */
export class ExitInformation {
  reason = 0;
  qualificationLow = 0;
  qualificationHigh = 0;
  linearLow = 0;
  linearHigh = 0;
  physicalLow = 0;
  physicalHigh = 0;
  interruptionInfo = 0;
  errorCode = 0;
  vectoringInfo = 0;
  vectoringError = 0;
  instructionLength = 0;
  instructionInfo = 0;
  /** What becomes of RFLAGS.RF where the exit saves it: 0 stays as it is, 1 set, -1 clear. */
  resume: 0 | 1 | -1 = 0;

  /** Something beside reason, qualification and instruction length is not zero. */
  get hasDetail(): boolean {
    const words = this.linearLow | this.linearHigh | this.physicalLow | this.physicalHigh;
    return (
      (words | this.interruptionInfo | this.errorCode | this.vectoringInfo | this.vectoringError | this.instructionInfo) !== 0
    );
  }

  reset(reason: number): void {
    this.reason = reason;
    this.qualificationLow = 0;
    this.qualificationHigh = 0;
    this.linearLow = 0;
    this.linearHigh = 0;
    this.physicalLow = 0;
    this.physicalHigh = 0;
    this.interruptionInfo = 0;
    this.errorCode = 0;
    this.vectoringInfo = 0;
    this.vectoringError = 0;
    this.instructionLength = 0;
    this.instructionInfo = 0;
    this.resume = 0;
  }

  setQualification(value: bigint): void {
    this.qualificationLow = Number(value & 0xffff_ffffn);
    this.qualificationHigh = Number((value >> 32n) & 0xffff_ffffn);
  }

  setLinear(value: bigint): void {
    this.linearLow = Number(value & 0xffff_ffffn);
    this.linearHigh = Number((value >> 32n) & 0xffff_ffffn);
  }

  setPhysical(gpa: number): void {
    this.physicalLow = gpa >>> 0;
    this.physicalHigh = Math.floor(gpa / 0x1_0000_0000);
  }

  /** Puts it into the VMCS. */
  store(vmcs: Vmcs): void {
    const v = vmcs.u32;
    const b = vmcs.base;
    v[b + slot.EXIT_REASON] = this.reason;
    v[b + slot.EXIT_QUALIFICATION] = this.qualificationLow;
    v[b + slot.EXIT_QUALIFICATION + 1] = this.qualificationHigh;
    v[b + slot.EXIT_INSTRUCTION_LENGTH] = this.instructionLength;
    v[b + slot.ENTRY_INTERRUPTION_INFO] = (v[b + slot.ENTRY_INTERRUPTION_INFO] as number) & ~Interruption.valid;
    const { hasDetail } = this;
    if (!hasDetail && !vmcs.hasExitDetail) return;
    vmcs.hasExitDetail = hasDetail;
    v[b + slot.GUEST_LINEAR_ADDRESS] = this.linearLow;
    v[b + slot.GUEST_LINEAR_ADDRESS + 1] = this.linearHigh;
    v[b + slot.GUEST_PHYSICAL_ADDRESS] = this.physicalLow;
    v[b + slot.GUEST_PHYSICAL_ADDRESS + 1] = this.physicalHigh;
    v[b + slot.EXIT_INTERRUPTION_INFO] = this.interruptionInfo;
    v[b + slot.EXIT_ERROR_CODE] = this.errorCode;
    v[b + slot.VECTORING_INFO] = this.vectoringInfo;
    v[b + slot.VECTORING_ERROR_CODE] = this.vectoringError;
    v[b + slot.EXIT_INSTRUCTION_INFO] = this.instructionInfo;
  }
}
