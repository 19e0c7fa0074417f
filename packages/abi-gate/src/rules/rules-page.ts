/** docs/abi-rules.md, and what `mkvm abi rules` prints. */
import { GateError } from "../errors.ts";
import type { Rule } from "./rule.ts";
import { ruleGroups } from "./rule-table.ts";

const classes = { major: 0, minor: 1, patch: 2 };
const cell = (text: string): string => text.replaceAll("|", "\\|");
const code = (text: string): string => (text === "-" ? "nothing" : `\`${cell(text)}\``);

/** All rules as one page of Markdown. */
export function rulesPage(): string {
  const all = ruleGroups.flatMap(({ rules }) => rules);
  const counts = (["major", "minor", "patch"] as const).map(
    (name) => `${all.filter((rule) => rule.class === name).length} ${name}`,
  );
  const parts = [
    "# ABI rules",
    `How \`mkvm abi check\` classifies changes: ${all.length} rules (${counts.join(", ")}). Written from the gate's own table by \`mkvm abi rules\`.`,
    "Below version 1.0.0 a major change needs a minor bump, and a minor one a patch: a caret takes them so. Who makes the values of a type (the package, or its users) is inferred from where the package takes and returns them, or told by `@implementedBy` in its documentation.",
  ];
  for (const { title, rules } of ruleGroups) {
    const rows = [...rules].sort((a, b) => classes[a.class] - classes[b.class]).map(row);
    parts.push(
      `## ${title}`,
      ["| rule | class | change | why | instead, or next |", "|---|---|---|---|---|", ...rows].join("\n"),
    );
  }
  return `${parts.join("\n\n")}\n`;
}

/** One rule, for the terminal. */
export function ruleText(id: string): string {
  const rule = ruleGroups.flatMap(({ rules }) => rules).find((each) => each.id === id);
  if (!rule) throw new GateError(`no rule is called '${id}': 'mkvm abi rules' lists them`);
  const [was, is] = rule.example;
  return [
    `${rule.id}: ${rule.class}`,
    rule.title,
    `was   ${was}`,
    `is    ${is}`,
    `why   ${rule.why}`,
    `do    ${rule.remedy}`,
  ].join("\n");
}

function row(rule: Rule): string {
  const [was, is] = rule.example;
  return `| \`${rule.id}\` | ${rule.class} | ${cell(rule.title)} ${code(was)} → ${code(is)} | ${cell(rule.why)} | ${cell(rule.remedy)} |`;
}
