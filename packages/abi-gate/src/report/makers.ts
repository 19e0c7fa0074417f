/**
 * Who makes the values of each type. Told by a tag in the documentation (`@implementedBy module`), or inferred: what a function of the
 * package returns the package makes; what it takes users make; and so on through members, with each parameter list turning round.
 */
import ts from "typescript";
import type { NamedNodes } from "./declarations.ts";
import type { MadeBy } from "./schema.ts";

const byTag: Record<string, MadeBy> = {
  module: "users",
  program: "users",
  caller: "users",
  kernel: "package",
  package: "package",
  both: "both",
};

/** The other side of a parameter list. */
export function opposite(maker: MadeBy): MadeBy {
  return maker === "both" ? "both" : maker === "package" ? "users" : "package";
}

/** What a declaration's @implementedBy says; undefined when it has none that is known. */
export function makerOf(node: ts.Node): MadeBy | undefined {
  for (const tag of ts.getJSDocTags(node)) {
    if (tag.tagName.text !== "implementedBy") continue;
    const word = (ts.getTextOfJSDocComment(tag.comment) ?? "").trim().split(/\s/)[0] ?? "";
    return byTag[word];
  }
  return undefined;
}

/** Makers by declaration name; declarations that nothing leads to are missing. */
export function inferMakers(
  declared: ReadonlyMap<string, NamedNodes>,
  exports: readonly { local?: string | undefined; typeOnly: boolean }[],
): Map<string, MadeBy> {
  const makers = new Map<string, MadeBy>();
  const told = new Set<string>();
  for (const [name, { nodes }] of declared) {
    const tag = nodes.map(documented).find((maker) => maker !== undefined);
    if (tag) {
      makers.set(name, tag);
      told.add(name);
    }
  }
  const reach = (name: string, maker: MadeBy): void => {
    const found = declared.get(name);
    if (!found || told.has(name)) return;
    const before = makers.get(name);
    const after = before === undefined || before === maker ? maker : "both";
    if (after === before) return;
    makers.set(name, after);
    for (const node of found.nodes) walk(node, after, reach);
  };
  for (const name of told) for (const node of declared.get(name)!.nodes) walk(node, makers.get(name)!, reach);
  for (const { local } of exports) {
    const nodes = local === undefined ? [] : (declared.get(local)?.nodes ?? []);
    const isValue = nodes.some(
      (node) => ts.isVariableDeclaration(node) || ts.isFunctionDeclaration(node) || ts.isClassDeclaration(node),
    );
    if (isValue) reach(local!, "package");
  }
  return makers;
}

/** Documentation of a constant is on its statement. */
function documented(node: ts.Node): MadeBy | undefined {
  return makerOf(ts.isVariableDeclaration(node) ? node.parent.parent : node);
}

function walk(node: ts.Node, maker: MadeBy, reach: (name: string, maker: MadeBy) => void): void {
  if (ts.isTypeReferenceNode(node) || ts.isTypeQueryNode(node) || ts.isExpressionWithTypeArguments(node)) {
    const named = ts.isTypeReferenceNode(node) ? node.typeName : ts.isTypeQueryNode(node) ? node.exprName : node.expression;
    if (ts.isIdentifier(named)) reach(named.text, maker);
  }
  if (ts.isParameter(node)) {
    if (node.type) walk(node.type, opposite(maker), reach);
    return;
  }
  ts.forEachChild(node, (child) => walk(child, maker, reach));
}
