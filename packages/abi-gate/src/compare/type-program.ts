/**
 * A program of the compiler in which the old and the new form of one declaration stand side by side. The old form is put in a namespace
 * within the new declarations, so every other name in it means what it means today: a difference is found where it was made, and not
 * again in everything that leads there.
 */

import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import ts from "typescript";
import type { Declaration, TypeApi } from "../report/schema.ts";

/** Declaration text of other packages, by name: what imports resolve to. */
export type OtherPackages = ReadonlyMap<string, string>;

export interface DeclarationPair {
  readonly name: string;
  /** Types of the values, where both are values. */
  readonly value?: { readonly old: ts.Type; readonly new: ts.Type };
  /** The types declared, with the same arguments for the same type parameters, where both are types. */
  readonly type?: { readonly old: ts.Type; readonly new: ts.Type };
}

export interface TypeProgram {
  readonly checker: ts.TypeChecker;
  readonly place: ts.Node;
  readonly pairs: readonly DeclarationPair[];
}

const options: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2024,
  lib: ["lib.es2024.d.ts", "lib.dom.d.ts"],
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  strict: true,
  exactOptionalPropertyTypes: true,
  noEmit: true,
  skipLibCheck: true,
  types: [],
};

const typeKinds = new Set(["interface", "type", "class", "enum"]);
const valueKinds = new Set(["constant", "function", "class", "enum"]);
export const hasType = (declaration: Declaration): boolean => declaration.kinds.some((kind) => typeKinds.has(kind));
export const hasValue = (declaration: Declaration): boolean => declaration.kinds.some((kind) => valueKinds.has(kind));

/** Text of type parameters and constraints, from a declaration's text. */
export interface TypeParameter {
  readonly name: string;
  readonly constraint?: string;
  readonly hasDefault: boolean;
}

export function typeParametersOf(declaration: Declaration): TypeParameter[] {
  const source = ts.createSourceFile("one.ts", declaration.text.join("\n"), ts.ScriptTarget.Latest, true);
  for (const statement of source.statements) {
    if (!ts.isInterfaceDeclaration(statement) && !ts.isTypeAliasDeclaration(statement) && !ts.isClassDeclaration(statement))
      continue;
    return (statement.typeParameters ?? []).map((parameter) => ({
      name: parameter.name.text,
      ...(parameter.constraint ? { constraint: parameter.constraint.getText() } : {}),
      hasDefault: parameter.default !== undefined,
    }));
  }
  return [];
}

/** Builds the program for `names`, declarations whose text differs. */
export function typeProgram(before: TypeApi, after: TypeApi, names: readonly string[], others: OtherPackages): TypeProgram {
  const old = new Map(before.declarations.map((declaration) => [declaration.name, declaration]));
  const current = new Map(after.declarations.map((declaration) => [declaration.name, declaration]));
  const gone = before.declarations.filter(({ name }) => !current.has(name));
  const imported = new Set(after.imports);
  const text = [
    ...after.imports,
    // Names that only the old form imports; where one is also declared today, today's counts.
    ...before.imports.filter((line) => !imported.has(line)),
    ...after.declarations.map(ambient),
  ];
  names.forEach((name, i) => {
    const was = old.get(name)!;
    const is = current.get(name)!;
    text.push(`declare namespace __old${i} {`, ...was.text, ...gone.flatMap((declaration) => declaration.text), "}");
    if (hasValue(was) && hasValue(is)) text.push(`type __value${i} = { old: typeof __old${i}.${name}; new: typeof ${name} };`);
    if (hasType(was) && hasType(is)) {
      const parameters = sharedParameters(typeParametersOf(was), typeParametersOf(is));
      const list = parameters.length ? `<${parameters.map(({ text }) => text).join(", ")}>` : "";
      const wasArguments = argumentList(typeParametersOf(was), parameters);
      const isArguments = argumentList(typeParametersOf(is), parameters);
      text.push(`type __type${i}${list} = { old: __old${i}.${name}${wasArguments}; new: ${name}${isArguments} };`);
    }
  });
  text.push("export {};");

  const file = "/api/index.ts";
  const program = ts.createProgram([file], options, hostOf(new Map([[file, text.join("\n")]]), others));
  const checker = program.getTypeChecker();
  const source = program.getSourceFile(file)!;
  const aliases = new Map<string, ts.TypeAliasDeclaration>();
  for (const statement of source.statements)
    if (ts.isTypeAliasDeclaration(statement)) aliases.set(statement.name.text, statement);
  const bothOf = (alias: string) => {
    const found = aliases.get(alias);
    if (!found) return undefined;
    const type = checker.getTypeAtLocation(found);
    const member = (key: string) => checker.getTypeOfSymbolAtLocation(type.getProperty(key)!, found);
    return { old: member("old"), new: member("new") };
  };
  const pairs = names.map((name, i): DeclarationPair => {
    const value = bothOf(`__value${i}`);
    const type = bothOf(`__type${i}`);
    return { name, ...(value ? { value } : {}), ...(type ? { type } : {}) };
  });
  return { checker, place: source, pairs };
}

function ambient(declaration: Declaration): string {
  const source = ts.createSourceFile("one.ts", declaration.text.join("\n"), ts.ScriptTarget.Latest, true);
  return source.statements
    .map((statement) => {
      const text = statement.getText();
      return ts.isInterfaceDeclaration(statement) || ts.isTypeAliasDeclaration(statement) ? text : `declare ${text}`;
    })
    .join("\n");
}

/** Parameters that both forms have, each bound to what both take. Named as in the new form. */
function sharedParameters(was: readonly TypeParameter[], is: readonly TypeParameter[]): { name: string; text: string }[] {
  return is.slice(0, was.length).map((parameter, i) => {
    let constraint = was[i]!.constraint;
    // The old constraint may name parameters by their old names
    was.forEach((other, k) => {
      if (constraint !== undefined && is[k] && is[k].name !== other.name)
        constraint = constraint.replaceAll(new RegExp(`\\b${other.name}\\b`, "g"), is[k].name);
    });
    const bounds = [...new Set([constraint, parameter.constraint].filter((each) => each !== undefined))];
    return {
      name: parameter.name,
      text: bounds.length ? `${parameter.name} extends ${bounds.map((bound) => `(${bound})`).join(" & ")}` : parameter.name,
    };
  });
}

function argumentList(own: readonly TypeParameter[], shared: readonly { name: string }[]): string {
  if (own.length === 0) return "";
  // A parameter that only one form has gets its default, or anything
  const words = own.flatMap((parameter, i) => (shared[i] ? [shared[i].name] : parameter.hasDefault ? [] : ["any"]));
  return words.length ? `<${words.join(", ")}>` : "";
}

/** Parsed files of the compiler's library: the same for every program. */
const library = new Map<string, ts.SourceFile>();
const libraryDirectory = dirname(createRequire(import.meta.url).resolve("typescript"));

function hostOf(files: ReadonlyMap<string, string>, others: OtherPackages): ts.CompilerHost {
  const all = new Map(files);
  for (const [name, text] of others) all.set(`/node_modules/${name}/index.d.ts`, text);
  return {
    getSourceFile(name, version) {
      const own = all.get(name);
      if (own !== undefined) return ts.createSourceFile(name, own, version, true);
      if (!name.startsWith(libraryDirectory)) return undefined;
      const known = library.get(name);
      if (known) return known;
      const text = ts.sys.readFile(name);
      if (text === undefined) return undefined;
      const parsed = ts.createSourceFile(name, text, version, true);
      library.set(name, parsed);
      return parsed;
    },
    getDefaultLibFileName: () => join(libraryDirectory, "lib.es2024.d.ts"),
    getDefaultLibLocation: () => libraryDirectory,
    writeFile: () => {},
    getCurrentDirectory: () => "/",
    getCanonicalFileName: (name) => name,
    useCaseSensitiveFileNames: () => true,
    getNewLine: () => "\n",
    fileExists: (name) => all.has(name) || (name.startsWith(libraryDirectory) && ts.sys.fileExists(name)),
    readFile: (name) => all.get(name) ?? (name.startsWith(libraryDirectory) ? ts.sys.readFile(name) : undefined),
    resolveModuleNameLiterals: (literals) =>
      literals.map(({ text }) => {
        const resolvedFileName = `/node_modules/${text}/index.d.ts`;
        return { resolvedModule: all.has(resolvedFileName) ? { resolvedFileName, extension: ts.Extension.Dts } : undefined };
      }),
  };
}
