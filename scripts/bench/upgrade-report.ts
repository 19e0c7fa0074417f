/** The figures of moves as a table for the terminal, as Markdown and as JSON. */
import Table from "cli-table3";
import { describeMachine, type MachineFacts } from "./machine.ts";
import type { UpgradeRow } from "./upgrade-parts.ts";

/** A row, and the part of the benchmark that measured it. */
export type MeasuredUpgradeRow = UpgradeRow & { readonly part: string };

export interface UpgradeReport {
  readonly machine: MachineFacts;
  readonly moves: number;
  readonly seconds: number;
  readonly rows: readonly MeasuredUpgradeRow[];
}

const head = ["what", "measured", "to reach", "reached"];

function cells({ what, unit, value, goal }: UpgradeRow): string[] {
  const figure = `${value.toFixed(unit === "ms" && Math.abs(value) < 100 ? 2 : unit === "ms" ? 0 : 1)} ${unit}`;
  return [what, figure, goal?.text ?? "", goal ? (goal.reached ? "yes" : "NO") : ""];
}

/** The rows of an earlier report, but those of parts that `newer` has measured again; in the order of `parts`. */
export function renewedUpgrade(earlier: UpgradeReport, newer: UpgradeReport, parts: readonly string[]): UpgradeReport {
  const measured = new Set(newer.rows.map((row) => row.part));
  const all = [...earlier.rows.filter((row) => !measured.has(row.part)), ...newer.rows];
  const rows = parts.flatMap((part) => all.filter((row) => row.part === part));
  return { ...newer, seconds: earlier.seconds + newer.seconds, rows };
}

export function upgradeTable(report: UpgradeReport): string {
  const table = new Table({ head, style: { head: [], border: [] } });
  table.push(...report.rows.map(cells));
  return [table.toString(), describeMachine(report.machine)].join("\n");
}

export function upgradeMarkdown(report: UpgradeReport): string {
  const line = (words: string[]) => `| ${words.join(" | ")} |`;
  return [
    "# Benchmarks of moves",
    "",
    "Written by `pnpm bench:upgrade`. Blackouts go from the request that stops a VM to the thaw. Figures of a machine with other work are of that",
    "work too: the load before the run says how much there was.",
    "",
    describeMachine(report.machine),
    "",
    line(head),
    line(head.map(() => "---")),
    ...report.rows.map((row) => line(cells(row))),
    "",
  ].join("\n");
}

export function upgradeJson(report: UpgradeReport): string {
  return `${JSON.stringify(report, undefined, 2)}\n`;
}
