/** What a #VMEXIT will write into the control area of the VMCB; filled at the moment of the decision, reused. */
export class ExitInformation {
  code = 0;
  info1Low = 0;
  info1High = 0;
  info2Low = 0;
  info2High = 0;
  /** EXITINTINFO. */
  interruptInfo = 0;
  interruptError = 0;
  /** nRIP; 0 where the exit is not an instruction's. */
  nextRip = 0n;
  /** The bytes of the guest's instruction belong to it. */
  hasBytes = false;

  reset(code: number): void {
    this.code = code;
    this.info1Low = 0;
    this.info1High = 0;
    this.info2Low = 0;
    this.info2High = 0;
    this.interruptInfo = 0;
    this.interruptError = 0;
    this.nextRip = 0n;
    this.hasBytes = false;
  }

  setInfo1(value: bigint): void {
    this.info1Low = Number(value & 0xffff_ffffn);
    this.info1High = Number((value >> 32n) & 0xffff_ffffn);
  }
  setInfo2(value: bigint): void {
    this.info2Low = Number(value & 0xffff_ffffn);
    this.info2High = Number((value >> 32n) & 0xffff_ffffn);
  }
  setPhysical(gpa: number): void {
    this.info2Low = gpa >>> 0;
    this.info2High = Math.floor(gpa / 0x1_0000_0000);
  }
}
