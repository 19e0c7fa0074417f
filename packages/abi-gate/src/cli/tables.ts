/** What `mkvm abi` prints. */
import Table from "cli-table3";
import picocolors from "picocolors";
import type { CheckResult } from "../check.ts";
import type { ChangeClass } from "../rules/rule.ts";
import { ruleOf } from "../rules/rule-table.ts";

/** For a terminal only: what goes into files, pipes and the logs of CI is searched and compared. */
const colors = picocolors.createColors(picocolors.isColorSupported && process.stdout.isTTY === true);

function table(head: string[], rows: string[][]): string {
  const sides = ["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left", "bottom-right"];
  const inner = ["left", "left-mid", "mid", "mid-mid", "right", "right-mid"];
  const chars = { ...Object.fromEntries([...sides, ...inner].map((name) => [name, ""])), middle: "  " };
  const view = new Table({ head, chars, style: { head: [], border: [], "padding-left": 0, "padding-right": 0 } });
  view.push(...rows);
  const lines = view.toString().split("\n");
  return lines.map((line) => line.trimEnd()).join("\n");
}

const painted: Record<ChangeClass, (text: string) => string> = { major: colors.red, minor: colors.yellow, patch: colors.dim };
const WIDTH = 100;
const short = (text: string): string => (text.length > WIDTH ? `${text.slice(0, WIDTH - 3)}...` : text);

export function checkText(result: CheckResult): string {
  const parts = [`against ${result.against}`];
  for (const verdict of result.packages) {
    if (verdict.findings.length === 0) continue;
    const order: ChangeClass[] = ["major", "minor", "patch"];
    const sorted = [...verdict.findings].sort((a, b) => order.indexOf(a.class) - order.indexOf(b.class));
    const rows = sorted.map(({ class: reach, rule, subject, detail }) => [painted[reach](reach), rule, subject, short(detail)]);
    parts.push(`${colors.bold(verdict.package)}\n${table(["CLASS", "RULE", "WHERE", "WAS -> IS"], rows)}`);
    const rules = [...new Set(sorted.filter((each) => each.class === "major").map(({ rule }) => rule))];
    for (const id of rules) {
      const { why, remedy } = ruleOf(id);
      parts.push(`  ${id}: ${why} ${remedy}`);
    }
  }
  if (result.packages.length > 0) {
    const rows = result.packages.map((each) => [
      each.package,
      each.from ?? "new",
      each.to,
      each.class ? painted[each.class](each.class) : "-",
      each.needs,
      each.has,
      each.enough ? colors.green("yes") : colors.red("NO"),
    ]);
    parts.push(table(["PACKAGE", "FROM", "TO", "CHANGE", "NEEDS", "HAS", "ENOUGH"], rows));
  }
  if (result.modules.length > 0) {
    const rows = result.modules.map((each) => [
      each.package,
      each.version,
      each.refusedBy.join("; ") || "takes it",
      each.trial ? each.trial.detail : "not loaded: only the newest versions are",
      each.brokenUnannounced
        ? colors.red("BREAKS")
        : each.refusedBy.length > 0
          ? "needs another release"
          : colors.green("goes on"),
    ]);
    parts.push(table(["PUBLISHED MODULE", "VERSION", "ITS RANGE", "LOADED HERE", "SO IT"], rows));
  }
  parts.push(...result.notes.map((note) => `note: ${note}`));
  parts.push(...result.failures.map((failure) => `${colors.red("fails")}: ${failure}`));
  if (result.failures.length === 0) parts.push(colors.green("passes"));
  return parts.join("\n\n");
}
