/** What ends an emulated instruction before its end. Thrown within the emulator, caught at its edge. */
import type { GuestFault } from "./emulated-cpu.ts";

export class FaultSignal {
  readonly fault: GuestFault;
  constructor(fault: GuestFault) {
    this.fault = fault;
  }
}
/** A read that user space has to make. */
export class MmioReadSignal {
  readonly gpa: number;
  readonly length: number;
  constructor(gpa: number, length: number) {
    this.gpa = gpa;
    this.length = length;
  }
}
/** An instruction that the emulator does not know. */
export class UnsupportedSignal {}
