/** Every rule, by id. */
import { binaryRules } from "./binary-rules.ts";
import { packageRules } from "./package-rules.ts";
import type { Finding, Rule } from "./rule.ts";
import { typeRules } from "./type-rules.ts";

/** Rules as they are documented, in groups. */
export const ruleGroups: readonly { readonly title: string; readonly rules: readonly Rule[] }[] = [
  { title: "TypeScript API", rules: typeRules },
  { title: "Binary surface", rules: binaryRules },
  { title: "Package", rules: packageRules },
];

export type RuleId =
  | (typeof typeRules)[number]["id"]
  | (typeof binaryRules)[number]["id"]
  | (typeof packageRules)[number]["id"];

const byId = new Map<string, Rule>(ruleGroups.flatMap((group) => group.rules.map((rule) => [rule.id, rule] as [string, Rule])));

/** The rule of that id; an assertion, since ids in code are checked by the compiler. */
export function ruleOf(id: string): Rule {
  const rule = byId.get(id);
  if (!rule) throw new Error(`no rule is called ${id}`);
  return rule;
}

/** Collects the findings of one package. */
export class Findings {
  readonly package: string;
  readonly all: Finding[] = [];

  constructor(name: string) {
    this.package = name;
  }

  add(rule: RuleId, subject: string, detail: string): void {
    const finding = { package: this.package, rule, class: ruleOf(rule).class, subject, detail };
    if (!this.all.some((other) => other.rule === rule && other.subject === subject && other.detail === detail))
      this.all.push(finding);
  }
}
