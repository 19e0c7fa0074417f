import { expect, it } from "vitest";
import { traceOf } from "../src/cli/trace-file.ts";
import type { MoveReport } from "../src/control/types.ts";

const report: MoveReport = {
  pid: 3,
  from: "kvm1",
  to: "kvm2",
  moved: true,
  finalised: false,
  startedUs: 1000,
  steps: [
    { step: "check", durationUs: 10 },
    { step: "prepare", durationUs: 100 },
    { step: "freeze", durationUs: 20 },
    { step: "save", durationUs: 30 },
    { step: "thaw", durationUs: 5 },
  ],
  blackoutUs: 49,
  stateBytes: 4000,
  retiredInstructions: 7,
};

it("puts the steps one after the other, and the blackout where it ends", () => {
  const { traceEvents } = traceOf([report]);
  const complete = traceEvents.filter(({ ph }) => ph === "X").map(({ name, ts, dur }) => [name, ts, dur]);
  expect(complete).toEqual([
    ["check", 1000, 10],
    ["prepare", 1010, 100],
    ["freeze", 1110, 20],
    ["save", 1130, 30],
    ["thaw", 1160, 5],
    ["kvm1 to kvm2", 1000, 165],
    ["blackout", 1111, 49],
  ]);
  expect(new Set(traceEvents.map(({ pid }) => pid))).toEqual(new Set([3]));
});

it("marks where a move failed", () => {
  const failed = { step: "prepare", reason: "no memory" } as const;
  const { traceEvents } = traceOf([{ ...report, moved: false, blackoutUs: 0, steps: report.steps.slice(0, 2), failed }]);
  expect(traceEvents.find(({ ph }) => ph === "i")).toMatchObject({ name: "failed: no memory", ts: 1110 });
  expect(traceEvents.some(({ name }) => name === "blackout")).toBe(false);
});
