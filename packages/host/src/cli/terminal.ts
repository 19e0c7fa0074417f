/** Standard input while a console is attached. */
import { HostError } from "../errors.ts";

const quitByte = 0x1d; // Ctrl-]

export interface ConsoleUser {
  input(bytes: Uint8Array): void;
  endInput(): void;
  /** Ctrl-] on a terminal, Ctrl-C or SIGTERM without one. */
  quit(): void;
}

/** Passes standard input on until the returned function is called. On a terminal: raw, so that Ctrl-C is the guest's. */
export function attachTerminal(user: ConsoleUser): () => void {
  const { stdin } = process;
  const raw = stdin.isTTY === true && process.stdout.isTTY === true;
  if (raw) {
    stdin.setRawMode(true);
    process.stderr.write("Ctrl-] leaves the console\r\n");
  }
  const onData = (bytes: Buffer) => {
    const quit = raw ? bytes.indexOf(quitByte) : -1;
    if (quit < 0) user.input(bytes);
    else {
      if (quit > 0) user.input(bytes.subarray(0, quit));
      user.quit();
    }
  };
  const onEnd = () => user.endInput();
  const onSignal = () => user.quit();
  stdin.on("data", onData);
  stdin.on("end", onEnd);
  // Standard input may be closed, or a file that cannot be read: the guest goes on without.
  stdin.on("error", onEnd);
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  process.on("SIGHUP", onSignal);
  return () => {
    if (raw) stdin.setRawMode(false);
    stdin.off("data", onData);
    stdin.off("end", onEnd);
    stdin.pause();
    stdin.unref?.();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
    process.off("SIGHUP", onSignal);
  };
}

/** Writes what a guest's console says; ends the command quietly when its reader is gone (`| head`). */
export function printOutput(bytes: Uint8Array, fd: 1 | 2): void {
  (fd === 1 ? process.stdout : process.stderr).write(bytes);
}

export function onBrokenPipe(quit: () => void): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw new HostError("EIO", error.message);
    quit();
  });
}
