/** The statuses of `mkvm ab`: the verdict's below 64, those of refusals as in sysexits.h, 130 for Ctrl-C. */
export const ExitStatus = {
  /** No judged metric regressed, and none is open. */
  ok: 0,
  regressed: 1,
  inconclusive: 2,
  /** A round failed, so the comparison is partial. */
  failed: 3,
  /** EX_USAGE: flags that make no sense. */
  usage: 64,
  /** EX_DATAERR: a plan that is none. */
  badPlan: 65,
  /** EX_NOINPUT: a file that cannot be read. */
  noInput: 66,
  /** EX_UNAVAILABLE: an arm that cannot be loaded. */
  unavailable: 69,
  /** EX_CANTCREAT: a report that cannot be written. */
  cannotWrite: 73,
  interrupted: 130,
} as const;

/** A refusal: one line for a person, and the status to exit with. */
export class AbError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message.replace(/\s*\n\s*/g, " "));
    this.name = "AbError";
    this.status = status;
  }
}

export function messageOf(thrown: unknown): string {
  return (thrown instanceof Error ? thrown.message : String(thrown)).replace(/\s*\n\s*/g, " ");
}
