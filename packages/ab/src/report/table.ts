import Table from "cli-table3";
import { formatP, formatPercent, formatValue } from "./format.ts";
import type { Result, ResultComparison } from "./result.ts";

/** For a terminal: what is judged, or with `all` everything, and what came of it. */
export function resultText(result: Result, options: { all?: boolean; color?: boolean } = {}): string {
  const { comparisons } = result;
  const present = comparisons.filter(isPresent);
  const shown = options.all ? present : comparisons.filter(({ verdict }) => verdict !== undefined);
  const table = new Table({
    head: ["METRIC", "A", "B", "CHANGE", `${result.confidence * 100} % INTERVAL`, "P", "DELTA", "VERDICT"],
    style: { head: [], border: [], compact: true, "padding-left": 0, "padding-right": 2 },
    chars: noLines,
  });
  for (const comparison of shown) table.push(rowOf(comparison, options.color ?? false));
  const { a, b } = result.arms;
  const lines = [
    `${result.name}: ${result.clock} clock, seed ${result.seed}, ${roundsText(result)}`,
    `A  ${armText(a)}`,
    `B  ${armText(b)}`,
    "",
    trimmed(table.toString()),
  ];
  const hidden = present.filter(({ verdict }) => verdict === undefined).length;
  if (hidden > 0 && !options.all) lines.push(`and ${hidden} more without a threshold: --all shows them`);
  lines.push("", summary(result));
  return lines.join("\n");
}

/** False for what neither arm has done once: most of the exit reasons that there are. */
export function isPresent({ a, b, shift, verdict }: ResultComparison): boolean {
  return verdict !== undefined || a.median !== 0 || b.median !== 0 || shift !== 0;
}

function rowOf(comparison: ResultComparison, color: boolean): string[] {
  const { metric, unit, a, b, percent, percentInterval, shift, shiftInterval, cliffsDelta, pAdjusted, p, verdict } = comparison;
  const signed = (value: number) => `${value > 0 ? "+" : ""}${formatValue(value, unit)}`;
  return [
    metric,
    formatValue(a.median, unit),
    formatValue(b.median, unit),
    percent === undefined ? signed(shift) : formatPercent(percent),
    (percentInterval?.map(formatPercent) ?? shiftInterval.map(signed)).join(" .. "),
    verdict === undefined && p !== undefined ? `(${formatP(p)})` : formatP(pAdjusted),
    cliffsDelta.toFixed(2),
    painted(verdict ?? "", color),
  ];
}

const paints: Record<string, number> = { regressed: 31, improved: 32, inconclusive: 33 };
function painted(verdict: string, color: boolean): string {
  return color && verdict in paints ? `\u001b[${paints[verdict]}m${verdict}\u001b[0m` : verdict;
}

/** One line: what came of it, and how much of it there is. */
export function summary(result: Result): string {
  const { failure, interrupted, comparisons, verdict } = result;
  const count = (wanted: string) =>
    comparisons.filter((comparison) => comparison.verdict === wanted).map(({ metric }) => metric);
  const parts = (["regressed", "improved", "inconclusive", "same"] as const).flatMap((wanted) => {
    const names = count(wanted);
    return names.length ? [`${names.length} ${wanted}${wanted === "same" ? "" : ` (${names.join(", ")})`}`] : [];
  });
  const partial = failure
    ? ` PARTIAL: arm ${failure.arm} failed in ${failure.round === "warm-up" ? "warm-up" : `round ${failure.round}`}: ${failure.reason}`
    : interrupted
      ? " PARTIAL: interrupted"
      : "";
  return `${verdict}: ${parts.join(", ") || "nothing was measured"}; corrected by ${result.correction}, alpha ${result.alpha}${partial}`;
}

export function roundsText(result: Result): string {
  const rounds = (arm: string) => result.rounds.filter((round) => round.arm === arm).length;
  const [a, b] = [rounds("a"), rounds("b")];
  const what = result.kind === "live" ? "VMs" : "rounds";
  return a === b ? `${a} ${what} of each arm` : `${a} ${what} of A, ${b} of B`;
}

export function armText(arm: Result["arms"]["a"]): string {
  const words = Object.entries(arm.parameters).map(([key, value]) => `${key}=${value}`);
  const from = `${arm.package} ${arm.version}`;
  return [arm.label, ...(arm.label === from ? [] : [`(${from})`]), ...words].join(" ");
}

function trimmed(text: string): string {
  return text
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}

const noLines = Object.fromEntries(
  [
    "top",
    "top-mid",
    "top-left",
    "top-right",
    "bottom",
    "bottom-mid",
    "bottom-left",
    "bottom-right",
    "left",
    "left-mid",
    "mid",
    "mid-mid",
    "right",
    "right-mid",
    "middle",
  ].map((name) => [name, ""]),
);
