/**
 * A refusal that a person or a script reads: one line that says what was asked, what is there, and what to do.
 * `code` is an errno's name ("EBUSY"), or "EREFUSED" where a module or a program said no in its own words.
 */
export class HostError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.name = "HostError";
    this.code = code;
  }
}

/** The text of whatever was thrown, on one line. */
export function messageOf(thrown: unknown): string {
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return text.replace(/\s*\n\s*/g, " ");
}

/** Text with the stack where there is one: for the kernel log. */
export function stackOf(thrown: unknown): string {
  return thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
}

/** Rebuilds an error that crossed a thread or a socket as plain data. */
export function hostErrorFrom(plain: { code: string; message: string }): HostError {
  return new HostError(plain.code, plain.message);
}

export function plainError(thrown: unknown): { code: string; message: string } {
  return { code: thrown instanceof HostError ? thrown.code : "EIO", message: messageOf(thrown) };
}
