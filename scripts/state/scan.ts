/**
 * Finds what can hold state in the sources of the KVM modules, with the TypeScript parser: fields of classes, variables that the
 * functions of a factory share, variables of a file, and members of the interfaces by which these hold more. Names alone are looked
 * at, not types, so that it takes a fraction of a second and needs nothing built.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import ts from "typescript";

export interface StateHolder {
  /** "kvm-core", ... */
  readonly package: string;
  /** Path within `src`. */
  readonly file: string;
  /** Class, factory or interface; the file's own variables: "(file)". */
  readonly name: string;
  readonly kind: "class" | "factory" | "interface" | "file";
  readonly fields: readonly string[];
}

export interface SourceText {
  readonly package: string;
  readonly file: string;
  readonly text: string;
}

const packages = ["kvm-core", "kvm-v1", "kvm-v2"];

/** The sources of everything that a module is made of. */
export function moduleSources(root: string): SourceText[] {
  return packages.flatMap((name) => {
    const folder = join(root, "packages", name, "src");
    return readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith(".ts"))
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
      .map((path) => ({ package: name, file: relative(folder, path), text: readFileSync(path, "utf8") }));
  });
}

/** Everything that holds state, in the order of the sources. */
export function findStateHolders(sources: readonly SourceText[]): StateHolder[] {
  return sources.flatMap((source) => new FileScan(source).holders);
}

class FileScan {
  readonly holders: StateHolder[] = [];
  readonly #source: SourceText;

  constructor(source: SourceText) {
    this.#source = source;
    const tree = ts.createSourceFile(source.file, source.text, ts.ScriptTarget.Latest, true);
    const own: string[] = [];
    for (const statement of tree.statements) {
      if (ts.isClassDeclaration(statement) && statement.name) this.#class(statement.name.text, statement);
      else if (ts.isFunctionDeclaration(statement) && statement.name && isFactory(statement))
        this.#add("factory", statement.name.text, sharedVariables(statement));
      else if (ts.isInterfaceDeclaration(statement)) this.#interface(statement.name.text, statement.members);
      else if (ts.isTypeAliasDeclaration(statement) && ts.isTypeLiteralNode(statement.type))
        this.#interface(statement.name.text, statement.type.members);
      else if (ts.isVariableStatement(statement)) own.push(...fileVariables(statement));
    }
    this.#add("file", "(file)", own);
  }

  #add(kind: StateHolder["kind"], name: string, fields: readonly string[]): void {
    if (fields.length > 0) this.holders.push({ package: this.#source.package, file: this.#source.file, name, kind, fields });
  }

  #class(name: string, declaration: ts.ClassDeclaration): void {
    const fields = declaration.members.flatMap((member) => {
      if (ts.isPropertyDeclaration(member)) return [member.name.getText()];
      if (!ts.isConstructorDeclaration(member)) return [];
      return member.parameters
        .filter((parameter) => ts.isParameterPropertyDeclaration(parameter, member))
        .map((parameter) => parameter.name.getText());
    });
    this.#add("class", name, fields);
  }

  /** Data with a member that can be set: whoever holds one holds more state than its own fields. */
  #interface(name: string, members: ts.NodeArray<ts.TypeElement>): void {
    const properties = members.filter(ts.isPropertySignature).filter(({ type }) => !type || !ts.isFunctionTypeNode(type));
    const changes = properties.some(({ modifiers }) => !modifiers?.some(({ kind }) => kind === ts.SyntaxKind.ReadonlyKeyword));
    // What has methods is described by an interface, and held by the class or factory behind it
    if (!changes || members.some(ts.isMethodSignature)) return;
    const names = properties.map((member) => member.name.getText());
    this.#add("interface", name, names);
  }
}

/** A function whose result has functions that share its variables. */
function isFactory(declaration: ts.FunctionDeclaration): boolean {
  const statements = declaration.body?.statements ?? [];
  return (
    returnsFunctions(declaration) || (declaration.name!.text.startsWith("create") && statements.some(ts.isFunctionDeclaration))
  );
}

function returnsFunctions(declaration: ts.FunctionDeclaration): boolean {
  return (declaration.body?.statements ?? []).some(
    (statement) =>
      ts.isReturnStatement(statement) &&
      statement.expression !== undefined &&
      ts.isObjectLiteralExpression(statement.expression) &&
      statement.expression.properties.some(
        (property) =>
          ts.isMethodDeclaration(property) ||
          ts.isGetAccessor(property) ||
          (ts.isPropertyAssignment(property) && isFunction(property.initializer)),
      ),
  );
}

function sharedVariables(declaration: ts.FunctionDeclaration): string[] {
  const variables = (declaration.body?.statements ?? [])
    .flatMap((statement) => (ts.isVariableStatement(statement) ? [...statement.declarationList.declarations] : []))
    .filter(({ initializer }) => initializer === undefined || !isFunction(initializer));
  return [...declaration.parameters, ...variables].flatMap(({ name }) => boundNames(name));
}

function boundNames(name: ts.BindingName): string[] {
  if (ts.isIdentifier(name)) return [name.text];
  return name.elements.flatMap((element) => (ts.isBindingElement(element) ? boundNames(element.name) : []));
}

/** Variables that can be set, and collections that begin empty. Others are tables. */
function fileVariables(statement: ts.VariableStatement): string[] {
  const isConst = (statement.declarationList.flags & ts.NodeFlags.Const) !== 0;
  return statement.declarationList.declarations
    .filter(({ initializer }) => {
      const begins = initializer && ts.isNewExpression(initializer) && (initializer.arguments ?? []).length === 0;
      return !isConst || begins;
    })
    .flatMap(({ name }) => boundNames(name));
}

function isFunction(node: ts.Expression): boolean {
  return ts.isArrowFunction(node) || ts.isFunctionExpression(node);
}
