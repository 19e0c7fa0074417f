/**
 * NMI blocking of a vCPU. The processor keeps no such state for guests: it begins with the injection of an NMI, and ends with the
 * guest's IRET, which is intercepted. The intercept comes before the IRET, so when another NMI waits the IRET is stepped over.
 * Source: AMD64 APM Vol. 2, Event Injection; Instruction Intercepts.
 */
import { Rflags } from "../arch/registers.ts";
import { Intercept1, VmcbControl, VmcbSave } from "../arch/vmcb-layout.ts";
import type { Vmcb } from "./vmcb.ts";

const INTERCEPT_DB = 1 << 1;
const OUR_FLAGS = Rflags.TF | Rflags.RF;

export class NmiBlocking {
  readonly #vmcb: Vmcb;
  #masked = false;
  /** RIP of the IRET that has exited and has not been executed yet. */
  #returnFrom: bigint | undefined;
  /** The guest's flags from before a step. */
  #step: { rflags: bigint } | undefined;

  /** A #DB exit is one of the guest's own, and not only the end of a step over IRET. */
  trapIsGuests = true;
  /** #DB is intercepted for someone else too. */
  #isShared = false;

  constructor(vmcb: Vmcb) {
    this.#vmcb = vmcb;
  }

  get masked(): boolean {
    return this.#masked;
  }
  set masked(masked: boolean) {
    this.#masked = masked;
    this.#returnFrom = undefined;
    this.endStep();
    this.#vmcb.setBit(VmcbControl.INTERCEPTS_1, Intercept1.IRET, masked);
  }

  /** The IRET exited: blocking ends when it has been executed. */
  interruptReturn(): void {
    this.#returnFrom = this.#vmcb.quad(VmcbSave.RIP);
    this.#vmcb.setBit(VmcbControl.INTERCEPTS_1, Intercept1.IRET, false);
  }

  /** An NMI waits: asks for an exit behind the IRET, or for the IRET's, which is on already. */
  watchWindow(): void {
    if (this.#returnFrom === undefined || this.#step !== undefined) return;
    const rflags = this.#vmcb.quad(VmcbSave.RFLAGS);
    this.#step = { rflags };
    this.#vmcb.setQuad(VmcbSave.RFLAGS, rflags | OUR_FLAGS);
    this.#vmcb.setBit(VmcbControl.EXCEPTION_INTERCEPTS, INTERCEPT_DB, true);
  }

  /** For a debugger #DB exits whether or not an IRET is stepped over. */
  set interceptsTraps(on: boolean) {
    this.#isShared = on;
    this.#vmcb.setBit(VmcbControl.EXCEPTION_INTERCEPTS, INTERCEPT_DB, on || this.#step !== undefined);
  }

  /** After each exit. */
  exited(): void {
    this.trapIsGuests = true;
    if (this.#returnFrom === undefined || this.#vmcb.quad(VmcbSave.RIP) === this.#returnFrom) return;
    this.trapIsGuests = this.#step === undefined || (this.#step.rflags & Rflags.TF) !== 0n;
    // The flags are those that IRET has taken from the stack
    this.#step = undefined;
    this.#vmcb.setBit(VmcbControl.EXCEPTION_INTERCEPTS, INTERCEPT_DB, this.#isShared);
    this.#returnFrom = undefined;
    this.#masked = false;
  }

  withoutStep(rflags: bigint): bigint {
    return this.#step === undefined ? rflags : rflags & ~(OUR_FLAGS & ~this.#step.rflags);
  }
  /** Takes back what the step has put into RFLAGS. */
  endStep(): void {
    if (this.#step === undefined) return;
    this.#vmcb.setQuad(VmcbSave.RFLAGS, this.withoutStep(this.#vmcb.quad(VmcbSave.RFLAGS)));
    this.#step = undefined;
    this.#vmcb.setBit(VmcbControl.EXCEPTION_INTERCEPTS, INTERCEPT_DB, this.#isShared);
  }
}
