/** CPU time that an engine took: what a machine that other work shares does not distort as it does the time on the wall. */
import { readFileSync } from "node:fs";

/** Seconds of CPU time so far; NaN where it cannot be known. */
export type CpuClock = () => number;

/** Of this process, all its threads: the guest's, and those that compile for it. */
export const ownCpuTime: CpuClock = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

/** What Linux counts the times of processes in, in every build: USER_HZ of <asm/param.h>. */
const TICKS_PER_SECOND = 100;

/** Of another process, all its threads. */
export function cpuTimeOf(pid: number | undefined): CpuClock {
  return () => {
    try {
      // The name of the program, in parentheses, may hold spaces; utime and stime are the 12th and 13th field behind it
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
        .replace(/^.*\) /s, "")
        .split(" ");
      return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
    } catch {
      return Number.NaN;
    }
  };
}
