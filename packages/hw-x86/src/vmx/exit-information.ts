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
}
