/** A refusal that a person or a script reads: one line that says what was wrong and what to do. Nothing was changed. */
export class GateError extends Error {
  constructor(message: string) {
    super(message.replace(/\s*\n\s*/g, " "));
    this.name = "GateError";
  }
}

/** The text of whatever was thrown, on one line. */
export function messageOf(thrown: unknown): string {
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return text.replace(/\s*\n\s*/g, " ");
}
