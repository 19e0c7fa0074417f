/** Events of a version 1 vCPU on their way to the guest. */
import { combineExceptions, type EventState, type ExceptionEvent, Vector } from "@mkvm/kvm-core";

const MAX_PENDING_NMIS = 2;

export class EventQueue implements EventState {
  exception: ExceptionEvent | undefined;
  interrupt: { vector: number; software: boolean } | undefined;
  nmiInjected = false;
  nmiPending = 0;
  instructionLength = 0;
  /** A fault on the way to #DF: the vCPU shuts down. */
  tripleFault = false;

  /** A new exception; on top of another one it becomes #DF, or the end. */
  raise(vector: number, errorCode: number | undefined, payload: bigint | undefined): void {
    let event: ExceptionEvent = { vector, errorCode, payload, injected: false, software: false };
    const before = this.exception;
    if (before !== undefined) {
      const result = combineExceptions(before.vector, vector);
      if (result === "triple") {
        this.exception = undefined;
        this.tripleFault = true;
        return;
      }
      if (result === "double")
        event = { vector: Vector.DF, errorCode: 0, payload: undefined, injected: false, software: false };
    }
    this.exception = event;
  }

  /** An event whose delivery was cut short by an exit: it goes in again before anything else. */
  requeueException(vector: number, errorCode: number | undefined, software: boolean, instructionLength: number): void {
    this.exception = { vector, errorCode, payload: undefined, injected: true, software };
    this.instructionLength = instructionLength;
  }

  raiseNmi(): void {
    this.nmiPending = Math.min(this.nmiPending + 1, MAX_PENDING_NMIS);
  }

  /** `interrupt` came from user space and waits for a window: it has not gone in. */
  interruptHeld = false;

  /** What was injected before the last entry has arrived. */
  clearDelivered(): void {
    this.exception = undefined;
    if (!this.interruptHeld) this.interrupt = undefined;
    this.interruptHeld = false;
    this.nmiInjected = false;
    this.instructionLength = 0;
  }

  clearAll(): void {
    this.clearDelivered();
    this.nmiPending = 0;
    this.tripleFault = false;
  }

  snapshot(): EventState {
    return {
      exception: this.exception && { ...this.exception },
      interrupt: this.interrupt && { ...this.interrupt },
      nmiInjected: this.nmiInjected,
      nmiPending: this.nmiPending,
      instructionLength: this.instructionLength,
      tripleFault: this.tripleFault,
    };
  }

  assign(state: EventState): void {
    this.exception = state.exception && { ...state.exception };
    this.interrupt = state.interrupt && { ...state.interrupt };
    this.nmiInjected = state.nmiInjected;
    this.nmiPending = state.nmiPending;
    this.instructionLength = state.instructionLength;
    this.tripleFault = state.tripleFault;
  }
}
