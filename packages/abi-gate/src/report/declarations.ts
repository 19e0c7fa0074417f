/** The TypeScript side of a report, from a package's built declaration file. */
import ts from "typescript";
import { GateError } from "../errors.ts";
import { inferMakers } from "./makers.ts";
import type { Declaration, TypeApi } from "./schema.ts";

/** Declarations of one name. */
export interface NamedNodes {
  readonly name: string;
  readonly nodes: ts.Node[];
}

type Exports = TypeApi["exports"];

const printer = ts.createPrinter({ removeComments: true });

/**
 * What `text`, a declaration file, declares and exports.
 * @throws GateError when an exported interface does not say who makes its values, and nothing else tells
 */
export function typeApiOf(packageName: string, text: string): TypeApi {
  const source = ts.createSourceFile("index.d.ts", text, ts.ScriptTarget.Latest, true);
  const imports: string[] = [];
  const exports: Exports = [];
  const declared = new Map<string, NamedNodes>();
  for (const statement of source.statements) {
    if (ts.isImportDeclaration(statement)) imports.push(print(statement, source));
    else if (ts.isExportDeclaration(statement)) exports.push(...exportsOf(statement, packageName));
    else if (ts.isExportAssignment(statement) && ts.isIdentifier(statement.expression))
      exports.push({ name: "default", local: statement.expression.text, typeOnly: false });
    else
      for (const name of namesOf(statement)) {
        const node = ts.isVariableStatement(statement) ? variable(statement, name) : statement;
        declared.set(name, { name, nodes: [...(declared.get(name)?.nodes ?? []), node] });
        if (modifier(statement, ts.SyntaxKind.ExportKeyword)) {
          const exportedAs = modifier(statement, ts.SyntaxKind.DefaultKeyword) ? "default" : name;
          if (!exports.some((other) => other.name === exportedAs))
            exports.push({ name: exportedAs, local: name, typeOnly: false });
        }
      }
  }
  const makers = inferMakers(declared, exports);
  const untold = exports.filter(({ local }) => {
    const nodes = local === undefined ? [] : (declared.get(local)?.nodes ?? []);
    return nodes.some(ts.isInterfaceDeclaration) && !makers.has(local!);
  });
  if (untold.length > 0) {
    throw new GateError(
      `${packageName} does not say who makes ${untold.map(({ name }) => name).join(", ")}: tag it in its documentation with @implementedBy and one of module, program, caller, kernel, package, both`,
    );
  }
  const declarations: Declaration[] = [...declared.values()].map(({ name, nodes }) => ({
    name,
    kinds: [...new Set(nodes.map(kindOf))].sort(),
    madeBy: makers.get(name) ?? "both",
    deprecated: nodes.flatMap((node) => deprecatedIn(node, name)).sort(),
    text: nodes.flatMap((node) => plainText(node, source).split("\n")),
  }));
  const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
  return { imports: imports.sort(), exports: exports.sort(byName), declarations: declarations.sort(byName) };
}

/** Names of modules that declarations import from, type queries included. */
export function importedModules(text: string): string[] {
  const source = ts.createSourceFile("index.d.ts", text, ts.ScriptTarget.Latest, true);
  const found = new Set<string>();
  const visit = (node: ts.Node): void => {
    if (
      (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) &&
      node.moduleSpecifier &&
      ts.isStringLiteral(node.moduleSpecifier)
    )
      found.add(node.moduleSpecifier.text);
    if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument) && ts.isStringLiteral(node.argument.literal))
      found.add(node.argument.literal.text);
    ts.forEachChild(node, visit);
  };
  visit(source);
  return [...found].sort();
}

function exportsOf(statement: ts.ExportDeclaration, packageName: string): Exports {
  const from =
    statement.moduleSpecifier && ts.isStringLiteral(statement.moduleSpecifier) ? statement.moduleSpecifier.text : undefined;
  if (!statement.exportClause || !ts.isNamedExports(statement.exportClause))
    throw new GateError(
      `${packageName} exports all of ${from ?? "something"}: name the exports one by one, so that they can be compared`,
    );
  return statement.exportClause.elements.map((element) => ({
    name: element.name.text,
    ...(from === undefined ? { local: (element.propertyName ?? element.name).text } : { from }),
    typeOnly: statement.isTypeOnly || element.isTypeOnly,
  }));
}

function namesOf(statement: ts.Statement): string[] {
  if (ts.isVariableStatement(statement))
    return statement.declarationList.declarations.flatMap(({ name }) => (ts.isIdentifier(name) ? [name.text] : []));
  if (
    ts.isFunctionDeclaration(statement) ||
    ts.isInterfaceDeclaration(statement) ||
    ts.isTypeAliasDeclaration(statement) ||
    ts.isClassDeclaration(statement) ||
    ts.isEnumDeclaration(statement) ||
    ts.isModuleDeclaration(statement)
  )
    return statement.name ? [statement.name.text] : [];
  return [];
}

function variable(statement: ts.VariableStatement, name: string): ts.Node {
  return statement.declarationList.declarations.find((each) => ts.isIdentifier(each.name) && each.name.text === name)!;
}

function modifier(node: ts.Node, kind: ts.SyntaxKind): boolean {
  return ts.canHaveModifiers(node) && (ts.getModifiers(node)?.some((each) => each.kind === kind) ?? false);
}

function kindOf(node: ts.Node): string {
  if (ts.isVariableDeclaration(node)) return "constant";
  if (ts.isFunctionDeclaration(node)) return "function";
  if (ts.isInterfaceDeclaration(node)) return "interface";
  if (ts.isTypeAliasDeclaration(node)) return "type";
  if (ts.isClassDeclaration(node)) return "class";
  if (ts.isEnumDeclaration(node)) return "enum";
  return "namespace";
}

function print(node: ts.Node, source: ts.SourceFile): string {
  return printer.printNode(ts.EmitHint.Unspecified, node, source);
}

/** The declaration without `export`, `declare`, comments, and what a class keeps to itself. */
function plainText(node: ts.Node, source: ts.SourceFile): string {
  if (ts.isVariableDeclaration(node)) return `const ${print(node, source)};`;
  if (ts.isClassDeclaration(node)) {
    const visible = node.members.filter(
      (member) =>
        !modifier(member, ts.SyntaxKind.PrivateKeyword) && !(member.name !== undefined && ts.isPrivateIdentifier(member.name)),
    );
    const modifiers = node.modifiers?.filter((each) => each.kind === ts.SyntaxKind.AbstractKeyword);
    const { name, typeParameters, heritageClauses } = node;
    return print(ts.factory.updateClassDeclaration(node, modifiers, name, typeParameters, heritageClauses, visible), source);
  }
  return print(node, source).replace(/^(export |default |declare )+/, "");
}

function deprecatedIn(node: ts.Node, name: string): string[] {
  const found = ts.getJSDocDeprecatedTag(node) ? [name] : [];
  const members = ts.isInterfaceDeclaration(node) || ts.isClassDeclaration(node) ? node.members : [];
  for (const member of members)
    if (ts.getJSDocDeprecatedTag(member) && member.name) found.push(`${name}.${member.name.getText()}`);
  return found;
}
