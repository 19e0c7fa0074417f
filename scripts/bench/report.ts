/** The rows as a table for the terminal, as Markdown and as JSON. */
import Table from "cli-table3";
import { describeMachine, type MachineFacts } from "./machine.ts";
import { type Peer, type Row, type Samples, summarize, timesFaster } from "./row.ts";

/** A row, and the part of the benchmark that measured it. */
export type MeasuredRow = Row & { part: string };

export interface Report {
  machine: MachineFacts;
  /** Asked for of the last run; a row has as many samples as it was given. */
  rounds: number;
  seconds: number;
  rows: readonly MeasuredRow[];
  notes: readonly string[];
}

const head = ["what", "mkvm", "QEMU TCG", "v86", "times faster", "in CPU time", "to reach", "reached"];

function cells(row: Row): string[] {
  const figure = (samples: Samples | undefined) => {
    if (!samples?.length) return "";
    const { median, min, max } = summarize(samples);
    const unit = row.unit === "x" ? "x" : ` ${row.unit}`;
    return samples.length === 1 ? `${digits(median)}${unit}` : `${digits(median)}${unit} (${digits(min)}-${digits(max)})`;
  };
  const ratio = (of: Pick<Row, "mkvm" | "peers">) =>
    (["tcg", "v86"] as Peer[])
      .flatMap((peer) => {
        const value = timesFaster(of, peer);
        return value === undefined ? [] : [`${value.toFixed(2)} (${peer})`];
      })
      .join(", ");
  const { cpuTime } = row;
  const reached = row.goal ? (row.goal.reached === undefined ? "not known" : row.goal.reached ? "yes" : "NO") : "";
  return [
    row.what,
    figure(row.mkvm),
    figure(row.peers.tcg),
    figure(row.peers.v86),
    ratio(row),
    cpuTime ? ratio(cpuTime) || figure(cpuTime.mkvm) : "",
    row.goal?.text ?? "",
    reached,
  ];
}

/** "5", or "3 to 5" where parts were measured at different times. */
function roundsOf(report: Report): string {
  const counts = report.rows.filter((row) => row.peers.tcg?.length).map((row) => row.mkvm.length);
  const [least, most] = counts.length ? [Math.min(...counts), Math.max(...counts)] : [report.rounds, report.rounds];
  return least === most ? `${least}` : `${least} to ${most}`;
}

/** The rows of an earlier report, but those of parts that `newer` has measured again; in the order of `parts`. */
export function renewed(earlier: Report, newer: Report, parts: readonly string[]): Report {
  const measured = new Set(newer.rows.map((row) => row.part));
  const all = [...earlier.rows.filter((row) => !measured.has(row.part)), ...newer.rows];
  const rows = parts.flatMap((part) => all.filter((row) => row.part === part));
  return { ...newer, seconds: earlier.seconds + newer.seconds, rows, notes: [...new Set([...earlier.notes, ...newer.notes])] };
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
    `Written by \`pnpm bench\`: medians of ${roundsOf(report)} rounds and, in brackets, the least and the most; peers took turns with mkvm in the`,
    "same run, and ratios are of medians. Machines are shared and noisy: compare within a run. Times are on the wall, and what is reached is said",
    "by them; beside them stands the ratio of CPU time, all threads counted, which other work on the machine distorts less.",
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
