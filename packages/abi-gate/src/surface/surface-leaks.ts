/**
 * What a built package lets out of itself by mistake: names of private packages, types that its users cannot resolve, imports that it
 * does not declare; and, of a KVM module, anything but the module.
 */
import { existsSync, readFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { dirname, join } from "node:path";
import ts from "typescript";
import { GateError } from "../errors.ts";
import { textFiles } from "../reference/registry.ts";
import { importedModules, typeApiOf } from "../report/declarations.ts";
import { builtFile, readBuilt, type Workspace, type WorkspacePackage } from "../workspace.ts";

export interface Leak {
  readonly package: string;
  readonly kind:
    | "private-package"
    | "undeclared-dependency"
    | "deep-import"
    | "module-imports"
    | "module-exports"
    | "module-declarations"
    | "value-not-declared"
    | "value-not-there";
  /** One line: what leaks where, and what to do. */
  readonly message: string;
}

const builtins = new Set(builtinModules.flatMap((name) => [name, `node:${name}`]));
/** "@scope/name" or "name" of an import, without the path within the package. */
const packageOf = (specifier: string): string =>
  specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");

export function surfaceLeaks(workspace: Workspace, item: WorkspacePackage): Leak[] {
  const leaks: Leak[] = [];
  const add = (kind: Leak["kind"], message: string) =>
    leaks.push({ package: item.name, kind, message: `${item.name}: ${message}` });
  const { manifest } = item;
  const privates = new Set(workspace.private.map(({ name }) => name));
  const ours = new Set([...workspace.published.map(({ name }) => name), ...privates]);
  const declared = new Set([
    ...Object.keys(manifest.dependencies ?? {}),
    ...Object.keys(manifest.peerDependencies ?? {}),
    item.name,
  ]);
  const judge = (specifier: string, where: string, isType: boolean): void => {
    if (specifier.startsWith(".") || builtins.has(specifier)) return;
    const name = packageOf(specifier);
    if (privates.has(name))
      add(
        "private-package",
        `${where} names ${name}, which is private and never published: bundle it, or do not show its types`,
      );
    else if (ours.has(name) && specifier !== name)
      add("deep-import", `${where} imports ${specifier}: packages export no more than themselves`);
    else if (!declared.has(name))
      add(
        "undeclared-dependency",
        `${where} names ${name}, which package.json does not declare: users cannot resolve ${isType ? "its types" : "it"}; add it to "dependencies"`,
      );
  };

  const declarations = readBuilt(item, "types");
  for (const specifier of importedModules(declarations)) judge(specifier, "its declarations", true);
  const code = textFiles(join(item.directory, "dist"), (path) => path.endsWith(".js"));
  const { imports, exports } = namesInCode(item);
  for (const specifier of imports) {
    if (manifest.mkvm)
      add("module-imports", `its code imports ${specifier}: a module gets all that it uses from init(kernel), so bundle it`);
    else judge(specifier, "its code", false);
  }
  for (const [path, text] of code)
    for (const name of privates)
      if (new RegExp(`(?:from|import)\\s*\\(?\\s*["']${name}["']`).test(text))
        add("private-package", `dist/${path} imports ${name}, which is private and never published: bundle it`);

  const api = typeApiOf(item.name, declarations);
  const valueKinds = ["constant", "function", "class", "enum", "namespace"];
  const values = api.exports.filter(({ typeOnly, local }) => {
    const found = api.declarations.find(({ name }) => name === local);
    return !typeOnly && (found === undefined || found.kinds.some((kind) => valueKinds.includes(kind)));
  });
  for (const name of exports)
    if (!values.some((value) => value.name === name))
      add("value-not-declared", `its code exports ${name}, which its declarations do not: stop exporting it, or declare it`);
  for (const { name } of values)
    if (!exports.includes(name))
      add("value-not-there", `its declarations export ${name}, which its code does not: users who import it fail at run time`);
  if (manifest.mkvm)
    judgeModule(
      api.exports.map(({ name }) => name),
      declarations,
      add,
    );
  return leaks;
}

/** A module is its default export; what else its declarations hold came out of its inside. */
function judgeModule(
  exports: readonly string[],
  declarations: string,
  add: (kind: Leak["kind"], message: string) => void,
): void {
  const more = exports.filter((name) => name !== "default");
  if (more.length > 0)
    add("module-exports", `it exports ${more.join(", ")} besides its default: a module is its default export and no more`);
  const source = ts.createSourceFile("index.d.ts", declarations, ts.ScriptTarget.Latest, true);
  const inner = source.statements.flatMap((statement) =>
    (ts.isInterfaceDeclaration(statement) ||
      ts.isTypeAliasDeclaration(statement) ||
      ts.isClassDeclaration(statement) ||
      ts.isEnumDeclaration(statement)) &&
    statement.name
      ? [statement.name.text]
      : [],
  );
  if (inner.length > 0)
    add(
      "module-declarations",
      `its declarations show ${inner.join(", ")}, which are its own affair: give the default export the type KernelModule of @mkvm/kvm-abi`,
    );
}

/** What the entry imports from outside of the package, over all its files, and the names that it exports. */
function namesInCode(item: WorkspacePackage): { imports: string[]; exports: string[] } {
  const imports = new Set<string>();
  const seen = new Set<string>();
  const follow = (file: string): void => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const { fileName: specifier } of ts.preProcessFile(codeOf(item, file)).importedFiles) {
      if (specifier.startsWith(".")) follow(join(dirname(file), specifier));
      else imports.add(specifier);
    }
  };
  const entry = builtFile(item, "import");
  follow(entry);
  return { imports: [...imports].sort(), exports: [...new Set(exportsOf(item, entry))] };
}

function exportsOf(item: WorkspacePackage, file: string): string[] {
  const source = ts.createSourceFile(file, codeOf(item, file), ts.ScriptTarget.Latest, false, ts.ScriptKind.JS);
  return source.statements.flatMap((statement): string[] => {
    if (ts.isExportAssignment(statement)) return ["default"];
    if (ts.isExportDeclaration(statement)) {
      const { exportClause: clause, moduleSpecifier: from } = statement;
      if (clause) return ts.isNamedExports(clause) ? clause.elements.map(({ name }) => name.text) : [clause.name.text];
      if (!from || !ts.isStringLiteral(from) || !from.text.startsWith(".")) return [];
      return exportsOf(item, join(dirname(file), from.text)).filter((name) => name !== "default");
    }
    const modifiers = ts.canHaveModifiers(statement) ? (ts.getModifiers(statement) ?? []) : [];
    const has = (kind: ts.SyntaxKind) => modifiers.some((modifier) => modifier.kind === kind);
    if (!has(ts.SyntaxKind.ExportKeyword)) return [];
    if (has(ts.SyntaxKind.DefaultKeyword)) return ["default"];
    if (ts.isFunctionDeclaration(statement) || ts.isClassDeclaration(statement)) return [statement.name!.text];
    if (!ts.isVariableStatement(statement)) return [];
    return statement.declarationList.declarations.flatMap(({ name }) => (ts.isIdentifier(name) ? [name.text] : []));
  });
}

function codeOf(item: WorkspacePackage, file: string): string {
  if (!existsSync(file)) throw new GateError(`${item.name}: its code imports ${file}, which is not there: build it`);
  return readFileSync(file, "utf8");
}
