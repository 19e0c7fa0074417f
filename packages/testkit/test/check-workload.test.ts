/** What the follower of the check workload takes for a problem. */
import { expect, test } from "vitest";
import { CheckWorkload } from "../src/linux-guest/check-workload.ts";

function ended(log: readonly string[], count = log.length): readonly string[] {
  const workload = new CheckWorkload();
  for (const line of log) workload.feed(`mkvm-log ${line}\n`);
  workload.feed(`mkvm-check-end n=0 sum=7 log=${count}\r\n`);
  return workload.report.problems;
}

const late = "[    5.456003] hrtimer: interrupt took 115175088 ns";
const lockup = "[   31.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [sh:71]";

test("a timer that came late is the machine's doing, and no problem", () => {
  expect(ended([late])).toEqual([]);
});

test("everything else in the guest's kernel log is one", () => {
  expect(ended([late, lockup])).toEqual([`in the guest's kernel log: ${lockup}`]);
});

test("so is a message that did not arrive", () => {
  expect(ended([late], 2)).toEqual(["round 0: count of messages in its kernel log is 2, must be 1"]);
});
