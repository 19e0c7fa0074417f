/** The rows as a table for the terminal, as Markdown and as JSON. */
import Table from "cli-table3";
import { describeMachine, type MachineFacts } from "./machine.ts";
import { type Peer, type Row, type Samples, summarize, timesFaster } from "./row.ts";

export interface Report {
  machine: MachineFacts;
  rounds: number;
  seconds: number;
  rows: readonly Row[];
  notes: readonly string[];
}

const head = ["what", "mkvm", "QEMU TCG", "v86", "times faster", "to reach", "reached"];

function cells(row: Row): string[] {
  const figure = (samples: Samples | undefined) => {
    if (!samples?.length) return "";
    const { median, min, max } = summarize(samples);
    const unit = row.unit === "x" ? "x" : ` ${row.unit}`;
    return samples.length === 1 ? `${digits(median)}${unit}` : `${digits(median)}${unit} (${digits(min)}-${digits(max)})`;
  };
  const ratio = (["tcg", "v86"] as Peer[]).flatMap((peer) => {
    const value = timesFaster(row, peer);
    return value === undefined ? [] : [`${value.toFixed(2)} (${peer})`];
  });
  const reached = row.goal ? (row.goal.reached === undefined ? "not known" : row.goal.reached ? "yes" : "NO") : "";
  return [
    row.what,
    figure(row.mkvm),
    figure(row.peers.tcg),
    figure(row.peers.v86),
    ratio.join(", "),
    row.goal?.text ?? "",
    reached,
  ];
}

/** Three digits that count, without an exponent. */
function digits(value: number): string {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

export function terminalTable(report: Report): string {
  const table = new Table({ head, style: { head: [], border: [] } });
  table.push(...report.rows.map(cells));
  return [table.toString(), ...report.notes, describeMachine(report.machine)].join("\n");
}

export function markdown(report: Report): string {
  const line = (words: string[]) => `| ${words.join(" | ")} |`;
  return [
    "# Benchmarks",
    "",
    `Written by \`pnpm bench\`: medians of ${report.rounds} rounds and, in brackets, the least and the most; peers took turns with mkvm in the`,
    "same run, and ratios are of medians. Machines are shared and noisy: compare within a run.",
    "",
    describeMachine(report.machine),
    "",
    line(head),
    line(head.map(() => "---")),
    ...report.rows.map((row) => line(cells(row))),
    ...(report.notes.length ? ["", ...report.notes.map((note) => `- ${note}`)] : []),
    "",
  ].join("\n");
}

export function json(report: Report): string {
  const rows = report.rows.map((row) => ({
    ...row,
    summary: row.mkvm.length ? summarize(row.mkvm) : undefined,
    timesFaster: { tcg: timesFaster(row, "tcg"), v86: timesFaster(row, "v86") },
  }));
  return `${JSON.stringify({ ...report, rows }, undefined, 2)}\n`;
}
