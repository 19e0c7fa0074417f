/** What either vendor's exits tell of the event in whose delivery they came. */

export interface DeliveredEvent {
  vector: number;
  type: number;
  errorCode: number | undefined;
  instructionLength: number;
}

/** Reused: the event whose delivery is under way, or the last that was. */
export class VectoringEvent implements DeliveredEvent {
  isUnderWay = false;
  vector = 0;
  type = 0;
  errorCode: number | undefined;
  instructionLength = 0;

  /** A delivery begins; or, with undefined, has ended. */
  note(event: DeliveredEvent | undefined): void {
    this.isUnderWay = event !== undefined;
    if (event === undefined) return;
    this.vector = event.vector;
    this.type = event.type;
    this.errorCode = event.errorCode;
    this.instructionLength = event.instructionLength;
  }
}
