import { SingleBar } from "cli-progress";

export interface Progress {
  step(done: number, total: number, what: string): void;
  stop(): void;
}

/** A bar on standard error; nothing where that is no terminal. */
export function createProgress(quiet: boolean): Progress {
  if (quiet || process.stderr.isTTY !== true) return { step() {}, stop() {} };
  const bar = new SingleBar({
    format: "{bar} {value}/{total}  {what}",
    stream: process.stderr,
    clearOnComplete: true,
    hideCursor: true,
    gracefulExit: false,
  });
  let started = false;
  return {
    step(done, total, what) {
      if (!started) bar.start(total, done, { what });
      else bar.update(done, { what });
      started = true;
    },
    stop: () => bar.stop(),
  };
}
