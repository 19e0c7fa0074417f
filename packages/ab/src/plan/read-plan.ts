/** From text to a plan, or to one line that says where it is none. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { findNodeAtLocation, getNodeValue, type ParseError, parseTree, printParseErrorCode } from "jsonc-parser";
import type { z } from "zod";
import { AbError, ExitStatus, messageOf } from "../errors.ts";
import { type Plan, planSchema } from "./schema.ts";

export interface PlanFile {
  plan: Plan;
  /** Relative paths and package names in it are looked for from here. */
  directory: string;
}

/** @throws AbError when it cannot be read or is no plan */
export function readPlanFile(path: string): PlanFile {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    const why =
      code === "ENOENT"
        ? "no such file"
        : code === "EISDIR"
          ? "it is a folder"
          : code === "EACCES"
            ? "not allowed"
            : messageOf(thrown);
    throw new AbError(ExitStatus.noInput, `plan ${path} cannot be read: ${why}`);
  }
  return { plan: parsePlan(text, path), directory: dirname(resolve(path)) };
}

/** @throws AbError with the place as `name:line:column` */
export function parsePlan(text: string, name: string): Plan {
  const errors: ParseError[] = [];
  const root = parseTree(text.replace(/^\uFEFF/, " "), errors, { disallowComments: true, allowTrailingComma: false });
  const [syntax] = errors;
  if (syntax || !root) {
    const what = syntax ? words(printParseErrorCode(syntax.error)) : "it is empty";
    throw new AbError(ExitStatus.badPlan, `${place(name, text, syntax?.offset ?? 0)}: no JSON: ${what}`);
  }
  const result = planSchema.safeParse(getNodeValue(root));
  if (result.success) return result.data;
  const [path, message] = firstProblem(result.error.issues);
  // What is missing has no place of its own: that of what should hold it is named.
  let node: ReturnType<typeof findNodeAtLocation>;
  for (let length = path.length; length >= 0 && !node; length--) node = findNodeAtLocation(root, path.slice(0, length));
  throw new AbError(
    ExitStatus.badPlan,
    `${place(name, text, (node?.parent?.type === "property" ? node.parent : (node ?? root)).offset)}: ${message}`,
  );
}

/** A plan that flags gave. @throws AbError */
export function checkPlan(value: unknown): Plan {
  const result = planSchema.safeParse(value);
  if (result.success) return result.data;
  throw new AbError(ExitStatus.usage, firstProblem(result.error.issues)[1]);
}

type Path = (string | number)[];

function firstProblem(issues: readonly z.core.$ZodIssue[]): [Path, string] {
  // A key that is misspelt is missing too: the misspelling says more.
  const issue = issues.find(({ code }) => code === "unrecognized_keys") ?? issues[0]!;
  const path = issue.path.map((part) => (typeof part === "number" ? part : String(part)));
  if (issue.code === "unrecognized_keys") {
    const key = issue.keys[0]!;
    return [[...path, key], `${dotted([...path, key])}: no such key here`];
  }
  const missing = issue.code === "invalid_type" && /received undefined/.test(issue.message);
  return [path, `${dotted(path) || "the plan"}: ${missing ? "missing" : plain(issue.message)}`];
}

function dotted(path: Path): string {
  return path.map((part, index) => (typeof part === "number" ? `[${part}]` : index ? `.${part}` : part)).join("");
}

function plain(message: string): string {
  return message.replace(/^Invalid (input|option): /, "").replace(/^Invalid input$/, "not one of what can be here");
}

function words(code: string): string {
  return code.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
}

function place(name: string, text: string, offset: number): string {
  const before = text.slice(0, offset).split("\n");
  return `${name}:${before.length}:${before.at(-1)!.length + 1}`;
}

/** The file's full path. @throws AbError when it is none */
export function existingFile(what: string, path: string, directory: string): string {
  const full = resolve(directory, path);
  if (!existsSync(full)) throw new AbError(ExitStatus.noInput, `${what} ${path}: no such file`);
  if (!statSync(full).isFile()) throw new AbError(ExitStatus.noInput, `${what} ${path}: not a regular file`);
  return full;
}
