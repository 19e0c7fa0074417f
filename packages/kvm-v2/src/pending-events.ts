/** Events of a version 2 vCPU on their way to the guest: flags and a few numbers, no objects. */
import { combineExceptions, type EventState, Vector } from "@mkvm/kvm-core";

export const EventFlag = {
  /** A new exception waits for the next entry. */
  exceptionPending: 1 << 0,
  /** An exception's delivery was cut short: it goes in again. */
  exceptionInjected: 1 << 1,
  exceptionHasError: 1 << 2,
  exceptionHasPayload: 1 << 3,
  exceptionSoftware: 1 << 4,
  interrupt: 1 << 5,
  interruptSoftware: 1 << 6,
  /** The interrupt came from user space and has not gone in yet. */
  interruptHeld: 1 << 7,
  nmiInjected: 1 << 8,
  tripleFault: 1 << 9,
} as const;

const EXCEPTION = EventFlag.exceptionPending | EventFlag.exceptionInjected;
const OF_EXCEPTION = EXCEPTION | EventFlag.exceptionHasError | EventFlag.exceptionHasPayload | EventFlag.exceptionSoftware;
const OF_INTERRUPT = EventFlag.interrupt | EventFlag.interruptSoftware | EventFlag.interruptHeld;
const MAX_PENDING_NMIS = 2;

export class PendingEvents {
  flags = 0;
  exceptionVector = 0;
  errorCode = 0;
  payload = 0n;
  interruptVector = 0;
  /** Of the instruction behind a software event. */
  instructionLength = 0;
  pendingNmis = 0;

  has(flag: number): boolean {
    return (this.flags & flag) !== 0;
  }
  get hasException(): boolean {
    return (this.flags & EXCEPTION) !== 0;
  }

  raise(vector: number, errorCode: number | undefined, payload: bigint | undefined): void {
    const result = this.hasException ? combineExceptions(this.exceptionVector, vector) : "second";
    this.flags &= ~OF_EXCEPTION;
    if (result === "triple") {
      this.flags |= EventFlag.tripleFault;
      return;
    }
    const double = result === "double";
    this.flags |= EventFlag.exceptionPending;
    this.exceptionVector = double ? Vector.DF : vector;
    this.#setErrorCode(double ? 0 : errorCode);
    this.#setPayload(double ? undefined : payload);
  }
  raiseNmi(): void {
    this.pendingNmis = Math.min(this.pendingNmis + 1, MAX_PENDING_NMIS);
  }
  /** The pending exception is being delivered by the next entry. */
  startException(): void {
    this.flags = (this.flags & ~(EventFlag.exceptionPending | EventFlag.exceptionHasPayload)) | EventFlag.exceptionInjected;
    this.payload = 0n;
  }

  requeueException(vector: number, errorCode: number | undefined, software: boolean, instructionLength: number): void {
    this.flags |= EventFlag.exceptionInjected | (software ? EventFlag.exceptionSoftware : 0);
    this.exceptionVector = vector;
    this.#setErrorCode(errorCode);
    this.instructionLength = instructionLength;
  }
  requeueInterrupt(vector: number, software: boolean, instructionLength: number): void {
    this.flags |= EventFlag.interrupt | (software ? EventFlag.interruptSoftware : 0);
    this.interruptVector = vector;
    this.instructionLength = instructionLength;
  }

  /** After an exit: all that was injected has arrived. */
  clearDelivered(): void {
    this.flags &= ~(OF_EXCEPTION | EventFlag.nmiInjected);
    if (this.has(EventFlag.interruptHeld)) this.flags &= ~EventFlag.interruptHeld;
    else this.flags &= ~OF_INTERRUPT;
    this.instructionLength = 0;
  }
  clear(): void {
    this.flags = 0;
    this.pendingNmis = 0;
    this.instructionLength = 0;
  }

  toState(): EventState {
    return {
      exception: this.hasException
        ? {
            vector: this.exceptionVector,
            errorCode: this.has(EventFlag.exceptionHasError) ? this.errorCode : undefined,
            payload: this.has(EventFlag.exceptionHasPayload) ? this.payload : undefined,
            injected: this.has(EventFlag.exceptionInjected),
            software: this.has(EventFlag.exceptionSoftware),
          }
        : undefined,
      interrupt: this.has(EventFlag.interrupt)
        ? { vector: this.interruptVector, software: this.has(EventFlag.interruptSoftware) }
        : undefined,
      nmiInjected: this.has(EventFlag.nmiInjected),
      nmiPending: this.pendingNmis,
      instructionLength: this.instructionLength,
      tripleFault: this.has(EventFlag.tripleFault),
    };
  }
  fromState(state: EventState): void {
    this.clear();
    const { exception, interrupt } = state;
    if (exception !== undefined) {
      this.flags |= exception.injected ? EventFlag.exceptionInjected : EventFlag.exceptionPending;
      if (exception.software) this.flags |= EventFlag.exceptionSoftware;
      this.exceptionVector = exception.vector;
      this.#setErrorCode(exception.errorCode);
      this.#setPayload(exception.payload);
    }
    if (interrupt !== undefined) {
      this.flags |= EventFlag.interrupt | (interrupt.software ? EventFlag.interruptSoftware : 0);
      this.interruptVector = interrupt.vector;
    }
    if (state.nmiInjected) this.flags |= EventFlag.nmiInjected;
    if (state.tripleFault) this.flags |= EventFlag.tripleFault;
    this.pendingNmis = state.nmiPending;
    this.instructionLength = state.instructionLength;
  }

  #setErrorCode(errorCode: number | undefined): void {
    this.flags = errorCode === undefined ? this.flags & ~EventFlag.exceptionHasError : this.flags | EventFlag.exceptionHasError;
    this.errorCode = errorCode ?? 0;
  }
  #setPayload(payload: bigint | undefined): void {
    this.flags =
      payload === undefined ? this.flags & ~EventFlag.exceptionHasPayload : this.flags | EventFlag.exceptionHasPayload;
    this.payload = payload ?? 0n;
  }
}
