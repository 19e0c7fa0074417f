/** Compares what TypeScript sees of two versions of a package. */
import ts from "typescript";
import type { Declaration, TypeApi } from "../report/schema.ts";
import type { Findings } from "../rules/rule-table.ts";
import { TypeComparison } from "./compare-types.ts";
import { hasValue, type OtherPackages, typeParametersOf, typeProgram } from "./type-program.ts";

export interface ApiComparisonOptions {
  /** Today's declarations of packages that these import. */
  readonly others: OtherPackages;
  /** Constants that the binary surface compares: not looked at here. */
  readonly covered: ReadonlySet<string>;
}

export function compareApi(before: TypeApi, after: TypeApi, options: ApiComparisonOptions, findings: Findings): void {
  const old = byName(before.declarations);
  const now = byName(after.declarations);
  compareExports(before, after, old, now, findings);
  const changed = before.declarations.filter((was) => {
    const is = now.get(was.name);
    const covered = options.covered.has(was.name) && was.kinds.join() === "constant";
    return is !== undefined && !covered && textOf(was) !== textOf(is);
  });
  for (const was of before.declarations) {
    const is = now.get(was.name);
    for (const name of is?.deprecated ?? [])
      if (!was.deprecated.includes(name)) findings.add("export-deprecated", name, "marked @deprecated");
  }
  if (changed.length === 0) return;
  const program = typeProgram(
    before,
    after,
    changed.map(({ name }) => name),
    options.others,
  );
  const comparison = new TypeComparison(program.checker, program.place, findings);
  program.pairs.forEach((pair, i) => {
    const was = changed[i]!;
    const is = now.get(pair.name)!;
    const count = findings.all.length;
    // An interface may become an alias of an object type; a name may stand for more than before
    const kinds = (declaration: Declaration) => declaration.kinds.map((kind) => (kind === "interface" ? "type" : kind));
    if (!kinds(was).every((kind) => kinds(is).includes(kind)))
      findings.add("export-kind-changed", pair.name, `${was.kinds.join(" and ")} -> ${is.kinds.join(" and ")}`);
    const madeBy = was.madeBy === is.madeBy ? is.madeBy : "both";
    if (pair.type) {
      const shared = compareTypeParameters(was, is, findings);
      if (shared) {
        if (was.kinds.includes("enum") && is.kinds.includes("enum")) compareEnums(was, is, findings);
        else comparison.declared(pair.type.old, pair.type.new, is.kinds.includes("class") ? "package" : madeBy, pair.name);
      }
    }
    if (pair.value && !was.kinds.includes("enum")) {
      if (was.kinds.includes("class") && is.kinds.includes("class"))
        comparison.constructors(pair.value.old, pair.value.new, pair.name);
      else comparison.slot(pair.value.old, pair.value.new, "package", pair.name);
    }
    if (findings.all.length === count) findings.add("declaration-rewritten", pair.name, "written otherwise, means the same");
  });
}

function compareExports(
  before: TypeApi,
  after: TypeApi,
  old: ReadonlyMap<string, Declaration>,
  now: ReadonlyMap<string, Declaration>,
  findings: Findings,
): void {
  type Export = TypeApi["exports"][number];
  const added = after.exports.filter(({ name }) => !before.exports.some((other) => other.name === name));
  const content = (each: Export, declarations: ReadonlyMap<string, Declaration>): string => {
    const declaration = each.local === undefined ? undefined : declarations.get(each.local);
    return declaration
      ? textOf(declaration).replaceAll(new RegExp(`\\b${declaration.name}\\b`, "g"), "NAME")
      : `from ${each.from} ${each.name}`;
  };
  for (const was of before.exports) {
    const is = after.exports.find(({ name }) => name === was.name);
    if (!is) {
      const twin = added.findIndex((candidate) => content(candidate, now) === content(was, old));
      if (twin >= 0) {
        findings.add("export-renamed", was.name, `${was.name} -> ${added[twin]!.name}`);
        added.splice(twin, 1);
      } else findings.add("export-removed", was.name, `${kindsOf(was, old)} -> -`);
      continue;
    }
    const wasValue = !was.typeOnly && (was.local === undefined || hasValueIn(was.local, old));
    const isValue = !is.typeOnly && (is.local === undefined || hasValueIn(is.local, now));
    if (wasValue && !isValue) findings.add("export-became-type-only", was.name, "value -> type only");
    if (!wasValue && isValue) findings.add("export-gained-value", was.name, "type only -> value");
    if (was.from !== is.from)
      findings.add("declaration-rewritten", was.name, `from ${was.from ?? "here"} -> from ${is.from ?? "here"}`);
    // The same export may stand on a declaration of another name: bundlers number them
    if (was.local !== undefined && is.local !== undefined && was.local !== is.local && content(was, old) !== content(is, now))
      findings.add("export-kind-changed", was.name, `${was.local} -> ${is.local}`);
  }
  for (const is of added) findings.add("export-added", is.name, `- -> ${kindsOf(is, now)}`);
}

const hasValueIn = (name: string, declarations: ReadonlyMap<string, Declaration>): boolean => {
  const found = declarations.get(name);
  return found !== undefined && hasValue(found);
};

function kindsOf(each: { local?: string | undefined }, declarations: ReadonlyMap<string, Declaration>): string {
  return (each.local === undefined ? undefined : declarations.get(each.local)?.kinds.join(" and ")) ?? "re-export";
}

/** False when the lists do not fit, so that the types cannot be compared with the same arguments. */
function compareTypeParameters(was: Declaration, is: Declaration, findings: Findings): boolean {
  const [old, now] = [typeParametersOf(was), typeParametersOf(is)];
  for (const parameter of old.slice(now.length))
    findings.add("type-parameter-removed", `${was.name}<${parameter.name}>`, `${parameter.name} -> -`);
  for (const parameter of now.slice(old.length))
    findings.add(
      parameter.hasDefault ? "type-parameter-added-with-default" : "type-parameter-added",
      `${was.name}<${parameter.name}>`,
      `- -> ${parameter.name}`,
    );
  for (let i = 0; i < Math.min(old.length, now.length); i++) {
    const [a, b] = [old[i]!, now[i]!];
    const subject = `${was.name}<${b.name}>`;
    if (a.hasDefault && !b.hasDefault) findings.add("type-parameter-narrowed", subject, "default -> no default");
    if (a.constraint === b.constraint) continue;
    // A bound may name its neighbours, so it is not compared on its own: only one that takes everything is known to be wider
    const isWider = b.constraint === undefined || b.constraint === "unknown" || b.constraint === "any";
    findings.add(
      isWider ? "type-parameter-widened" : "type-parameter-narrowed",
      subject,
      `${a.constraint ?? "anything"} -> ${b.constraint ?? "anything"}`,
    );
  }
  return old.length <= now.length;
}

function compareEnums(was: Declaration, is: Declaration, findings: Findings): void {
  const [old, now] = [enumValues(was), enumValues(is)];
  for (const [name, value] of old) {
    const after = now.get(name);
    if (after === undefined) findings.add("member-removed", `${was.name}.${name}`, `${value} -> -`);
    else if (after !== value) findings.add("constant-type-changed", `${was.name}.${name}`, `${value} -> ${after}`);
  }
  for (const [name, value] of now) if (!old.has(name)) findings.add("member-added", `${was.name}.${name}`, `- -> ${value}`);
}

function enumValues(declaration: Declaration): Map<string, string> {
  const source = ts.createSourceFile("one.ts", declaration.text.join("\n"), ts.ScriptTarget.Latest, true);
  const values = new Map<string, string>();
  let next = 0;
  for (const statement of source.statements) {
    if (!ts.isEnumDeclaration(statement)) continue;
    for (const member of statement.members) {
      const text = member.initializer?.getText() ?? String(next);
      values.set(member.name.getText(), text);
      next = Number(text) + 1;
    }
  }
  return values;
}

function byName(declarations: readonly Declaration[]): Map<string, Declaration> {
  return new Map(declarations.map((declaration) => [declaration.name, declaration]));
}

function textOf(declaration: Declaration): string {
  return declaration.text.join("\n");
}
