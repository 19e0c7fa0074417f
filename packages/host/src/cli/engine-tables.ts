/** What `--engine-stats` prints. */
import type { EngineReport, TimePart } from "../control/types.ts";
import { table } from "./tables.ts";

const modeTexts: Readonly<Record<EngineReport["mode"], string>> = {
  off: "off: everything is interpreted",
  hot: "hot: what runs often is translated",
  always: "always: everything is translated at first sight",
};

const partTexts: Readonly<Record<TimePart, string>> = {
  translated: "translated code",
  interpreter: "interpreter",
  memory: "accesses that missed the TLB, page walks",
  blocks: "finding and decoding code",
  translating: "translating",
  helpers: "instructions outside of generated code",
  events: "faults and interrupts into the guest",
  vmx: "VM entry, VM exit, VMX instructions",
  module: "KVM module",
  program: "VMM",
  kernel: "host kernel",
  garbage: "garbage collection",
  idle: "idle",
  other: "other",
};

type Count = keyof EngineReport["translator"];
const countTexts: Readonly<Record<Count, string>> = {
  regionsMade: "regions translated",
  regionsRemade: "of them anew, with more entries",
  regionsInUse: "regions in use",
  instructions: "guest instructions in them",
  bytes: "bytes of WebAssembly",
  linked: "jumps within regions",
  invalidated: "regions dropped because their code changed",
  flushes: "times all were dropped",
  milliseconds: "milliseconds spent translating",
};

const blockTexts: Readonly<Record<keyof EngineReport["blocks"], string>> = {
  decoded: "decoded blocks",
  linked: "links from block to block",
  cold: "dropped because they hardly ran",
  flushes: "times all were dropped",
};

const percent = (part: number, whole: number): string => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "-");
const whole = (value: number): string => Math.round(value).toLocaleString("en-US");

export function engineText(report: EngineReport): string {
  const rate = report.retiredInstructions / report.seconds / 1e6;
  const lines = [
    `process ${report.pid}: ${whole(report.retiredInstructions)} guest instructions in ${report.seconds.toFixed(1)} s, ${rate.toFixed(0)} M/s`,
    `translation ${modeTexts[report.mode]}`,
    "",
    table(
      ["TRANSLATED CODE", ""],
      (Object.keys(countTexts) as Count[]).map((name) => [countTexts[name], whole(report.translator[name])]),
    ),
  ];
  lines.push(
    "",
    table(
      ["INTERPRETED CODE", ""],
      (Object.keys(blockTexts) as (keyof EngineReport["blocks"])[]).map((name) => [
        blockTexts[name],
        whole(report.blocks[name]),
      ]),
    ),
  );
  const { timeMs } = report;
  if (timeMs) {
    const parts = (Object.entries(timeMs) as [TimePart, number][]).filter(([, ms]) => ms > 0).sort((a, b) => b[1] - a[1]);
    const total = parts.reduce((sum, [, ms]) => sum + ms, 0);
    const rows = parts.map(([part, ms]) => [partTexts[part], `${whole(ms)} ms`, percent(ms, total)]);
    lines.push("", table(["TIME OF THE CPU'S THREAD, SAMPLED", "", ""], rows));
  }
  const exits = report.exits.reduce((sum, { count }) => sum + count, 0);
  const rows = report.exits.map(({ reason, count }) => [reason, whole(count), percent(count, exits)]);
  lines.push("", table(["VM EXITS", whole(exits), ""], rows));
  return lines.join("\n");
}

/** On standard error, since standard output is the guest's. JSON is one line. */
export function printEngineReport(report: EngineReport, asJson: boolean | undefined): void {
  process.stderr.write(`${asJson ? JSON.stringify(report) : `\n${engineText(report)}`}\n`);
}
