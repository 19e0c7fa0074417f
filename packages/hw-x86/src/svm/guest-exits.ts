/** How a guest leaves SVM guest mode once that is decided. Source: AMD64 APM Vol. 2, #VMEXIT; State Saved on Exit. */
import { state } from "../engine/cpu-state.ts";
import { VM_EXIT } from "../engine/guest-mode.ts";
import type { GuestEngine } from "../root-interface.ts";
import { VectoringEvent } from "../vectoring-event.ts";
import { ExitInformation } from "./exit-information.ts";
import { Event, ExitCode } from "./vmcb.ts";

export class GuestExits {
  readonly information = new ExitInformation();
  readonly vectoring = new VectoringEvent();
  /** The exit after the instruction at hand is decided. */
  isTrapDue = false;
  readonly #guest: { readonly engine: GuestEngine };

  constructor(guest: { readonly engine: GuestEngine }) {
    this.#guest = guest;
  }

  /** Adds to the exit information what was being delivered. */
  #noteVectoring(): void {
    const event = this.vectoring;
    if (!event.isUnderWay) return;
    event.isUnderWay = false;
    const exit = this.information;
    if (exit.code === ExitCode.shutdown || exit.code === ExitCode.exception + 8) return;
    // INT1, INT3 and INTO are exceptions here
    const type = event.type > Event.software ? Event.exception : event.type;
    exit.interruptInfo = event.vector | (type << Event.typeShift) | Event.valid;
    if (event.errorCode === undefined) return;
    exit.interruptInfo |= Event.errorValid;
    exit.interruptError = event.errorCode;
  }

  /** With the information filled. */
  leave(): never {
    this.#noteVectoring();
    throw VM_EXIT;
  }

  /** Exit caused by the instruction at hand, from anywhere in it. `info1` fits 32 bits. */
  byInstruction(code: number, info1 = 0): never {
    this.#prepare(code, info1);
    return this.leave();
  }

  /** The same for an instruction that ends its block: the caller returns true to its helper, and generated code ends by itself. */
  afterInstruction(code: number, info1 = 0): true {
    this.#prepare(code, info1);
    this.#guest.engine.leave();
    return true;
  }

  #prepare(code: number, info1: number): void {
    const exit = this.information;
    exit.reset(code);
    exit.info1Low = info1;
    exit.nextRip = this.#guest.engine.nextRip();
  }

  /** Behind the instruction at hand, with the information filled. */
  trap(): void {
    this.isTrapDue = true;
    this.#guest.engine.requestStop();
  }

  /** nRIP of an instruction of so many bytes at RIP, which is no longer at hand. */
  ripAfter(bytes: number): bigint {
    return BigInt.asUintN(64, this.#guest.engine.get64(state.rip) + BigInt(bytes));
  }
}
