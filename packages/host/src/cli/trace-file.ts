/** Moves as a timeline for trace viewers: Trace Event Format, complete events, times in microseconds since the host started. */
import { writeFileSync } from "node:fs";
import type { MoveReport } from "../control/types.ts";
import { HostError, messageOf } from "../errors.ts";

export interface TraceEvent {
  name: string;
  cat: "move";
  /** X: complete, with a duration. M: metadata. i: an instant. */
  ph: "X" | "M" | "i";
  ts?: number;
  dur?: number;
  pid: number;
  tid: number;
  s?: "t";
  args?: Record<string, unknown>;
}

/** Rows of a process in the viewer. */
const rows = { move: 1, steps: 2, blackout: 3 } as const;

export function traceOf(reports: readonly MoveReport[]): { displayTimeUnit: "ms"; traceEvents: TraceEvent[] } {
  const traceEvents: TraceEvent[] = [];
  for (const report of reports) {
    const { pid, from, to, startedUs, steps, blackoutUs, failed } = report;
    const add = (tid: number, event: Pick<TraceEvent, "name" | "ph"> & Partial<TraceEvent>) =>
      traceEvents.push({ cat: "move", pid, tid, ...event });
    add(rows.move, { name: "process_name", ph: "M", args: { name: `process ${pid}` } });
    for (const [name, tid] of Object.entries(rows)) add(tid, { name: "thread_name", ph: "M", args: { name } });
    let at = startedUs;
    let thaw: number | undefined;
    for (const { step, durationUs } of steps) {
      if (step === "thaw") thaw = at;
      add(rows.steps, { name: step, ph: "X", ts: at, dur: durationUs });
      at += durationUs;
    }
    const { moved, finalised, stateBytes, retiredInstructions } = report;
    add(rows.move, {
      name: `${from} to ${to}`,
      ph: "X",
      ts: startedUs,
      dur: at - startedUs,
      args: { moved, finalised, stateBytes, retiredInstructions, blackoutUs, ...(failed && { failed }) },
    });
    // It ends where the thaw begins; a move that fails before it stops anything has none
    if (blackoutUs > 0) {
      const end = thaw ?? at;
      add(rows.blackout, { name: "blackout", ph: "X", ts: end - blackoutUs, dur: blackoutUs });
    }
    if (failed) add(rows.steps, { name: `failed: ${failed.reason}`, ph: "i", s: "t", ts: at });
  }
  return { displayTimeUnit: "ms", traceEvents };
}

export function writeTrace(path: string, reports: readonly MoveReport[]): void {
  try {
    writeFileSync(path, `${JSON.stringify(traceOf(reports))}\n`);
  } catch (thrown) {
    throw new HostError("EIO", `the moves are done, but their trace ${path} cannot be written: ${messageOf(thrown)}`);
  }
}
