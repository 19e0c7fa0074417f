/** Work on a process that begins at an exact instruction. */
import { HostError } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";

/** Begins something when the CPU has retired exactly `at` instructions since the process started. */
export function atInstruction<Result>(process: KernelProcess, at: number, work: () => Promise<Result>): Promise<Result> {
  const { scheduler } = process.kernel;
  return new Promise((resolve, reject) => {
    const tooLate = () => {
      scheduler.removeStop(stop);
      reject(new HostError("ESRCH", `process ${process.pid} ended before instruction ${at}`));
    };
    const begin = (): void => {
      if (process.ending) {
        tooLate();
        return;
      }
      // Two moves at one instruction happen one after the other.
      if (process.standstill) {
        process.standstill.done.then(begin, begin);
        return;
      }
      process.atEnd.delete(tooLate);
      work().then(resolve, reject);
    };
    const stop = { at: process.startRetired + at, reached: begin };
    process.atEnd.add(tooLate);
    scheduler.addStop(stop);
  });
}
