/** How a guest leaves VMX non-root operation once that is decided. Source: Intel SDM Vol. 3C, Recording VM-Exit Information. */
import { VM_EXIT } from "../engine/guest-mode.ts";
import type { GuestEngine } from "../root-interface.ts";
import { VectoringEvent } from "../vectoring-event.ts";
import { ExitReason, Interruption } from "./controls.ts";
import { ExitInformation } from "./exit-information.ts";
import { instructionInformation } from "./instruction-information.ts";

/** "NMI unblocking due to IRET" in interruption information and in the qualification of EPT violations and full logs. */
const NMI_UNBLOCKING = 1 << 12;

export class GuestExits {
  readonly information = new ExitInformation();
  readonly vectoring = new VectoringEvent();
  /** The IRET at hand has lifted the blocking of NMIs; undone by the first of its end and a fault of it. */
  isUnblocking = false;
  readonly #guest: { readonly engine: GuestEngine };

  constructor(guest: { readonly engine: GuestEngine }) {
    this.#guest = guest;
  }

  /** "NMI unblocking due to IRET", if that is so. */
  get unblocking(): number {
    return this.isUnblocking ? NMI_UNBLOCKING : 0;
  }

  /** Adds to the exit information what was being delivered. */
  noteVectoring(): void {
    const event = this.vectoring;
    if (!event.isUnderWay) return;
    event.isUnderWay = false;
    const exit = this.information;
    const isDoubleFault = exit.reason === ExitReason.exceptionOrNmi && (exit.interruptionInfo & 0xff) === 8;
    if (exit.reason === ExitReason.tripleFault || isDoubleFault) return;
    exit.vectoringInfo = (event.vector | (event.type << 8) | Interruption.valid) >>> 0;
    if (event.errorCode !== undefined) {
      exit.vectoringInfo = (exit.vectoringInfo | Interruption.errorCodeValid) >>> 0;
      exit.vectoringError = event.errorCode;
    }
    if (event.type >= 4) exit.instructionLength = event.instructionLength;
  }

  /** With the information filled. */
  leave(): never {
    this.noteVectoring();
    this.isUnblocking = false;
    throw VM_EXIT;
  }

  /** Exit caused by the instruction at hand, from anywhere in it. */
  byInstruction(reason: number, qualification = 0): never {
    this.#prepare(reason).qualificationLow = qualification;
    return this.leave();
  }

  /** The same for an instruction that ends its block: the caller returns true to its helper, and generated code ends by itself. */
  afterInstruction(reason: number, qualification = 0): true {
    this.#prepare(reason).qualificationLow = qualification;
    this.#guest.engine.leave();
    return true;
  }

  /** Exits by the instruction at hand where they tell of its operands. */
  byOperands(reason: number, mnemonic: string): never {
    this.#prepareOperands(reason, mnemonic);
    return this.leave();
  }
  afterOperands(reason: number, mnemonic: string): true {
    this.#prepareOperands(reason, mnemonic);
    this.#guest.engine.leave();
    return true;
  }
  #prepareOperands(reason: number, mnemonic: string): void {
    const information = instructionInformation(this.#guest.engine, mnemonic);
    const exit = this.#prepare(reason);
    if (information === undefined) return;
    exit.instructionInfo = information.field;
    exit.setQualification(information.displacement);
  }

  #prepare(reason: number): ExitInformation {
    const exit = this.information;
    exit.reset(reason);
    exit.resume = -1;
    exit.instructionLength = this.#guest.engine.instructionLength();
    return exit;
  }
}
