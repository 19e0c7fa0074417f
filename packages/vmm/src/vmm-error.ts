/** What a user did or has that keeps a VM from starting: one line, with what to do. */
export class VmmError extends Error {
  override readonly name = "VmmError";
}

/**
 * Exit statuses of the VMM. Odd ones belong to the guest: a write of v to the debug-exit port gives (v << 1) | 1.
 */
export const ExitStatus = {
  powerOff: 0,
  /** Bad arguments, a kernel image that is none, too little memory. */
  usage: 2,
  tripleFault: 4,
  internalError: 6,
  failedEntry: 8,
  /** The guest asked for a reset, as a panicking Linux does. */
  reset: 10,
  /** The kernel refused a system call. */
  systemCall: 12,
} as const;
