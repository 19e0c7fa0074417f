/**
 * What modules answer in a move, looked at before it is used: a module is code of another release, and what it gets wrong must
 * end the move by name and not somewhere inside the kernel. Each function gives a sentence about what is wrong, or undefined.
 */
import type { FileOperations } from "@mkvm/kvm-abi";
import { isRecord } from "../loader/package-files.ts";

export function describeProblem(answer: unknown): string | undefined {
  if (!isRecord(answer) || !Array.isArray(answer.sections)) return "describe answered no { sections, early }";
  if (!answer.sections.every(isSectionHead)) return "describe answered sections without name, instance, version or required";
  return sectionsProblem("describe (early)", answer.early);
}

export function sectionsProblem(call: string, answer: unknown): string | undefined {
  if (!Array.isArray(answer)) return `${call} answered no list of sections`;
  const bad = answer.find(
    (section) => !isSectionHead(section) || !(ArrayBuffer.isView(section.bytes) && "length" in section.bytes),
  );
  if (bad === undefined) return undefined;
  return `${call} answered a section that is none: ${isRecord(bad) ? String(bad.name) : typeof bad}`;
}

/** A string is a refusal, and no problem. */
export function incomingProblem(answer: unknown): string | undefined {
  if (typeof answer === "string") return undefined;
  const methods = ["restore", "save", "commit", "abort"];
  const missing = isRecord(answer) ? methods.filter((method) => typeof answer[method] !== "function") : methods;
  return missing.length > 0 ? `prepare answered no incoming VM: ${missing.join(", ")} missing` : undefined;
}

/** `restore` answers nothing, or why not; a promise would be a restore that has not happened. */
export function restoreProblem(answer: unknown): string | undefined {
  if (answer === undefined || typeof answer === "string") return undefined;
  return answer instanceof Promise
    ? "restore answered with a promise: it must be done when it returns"
    : `restore answered ${typeof answer}`;
}

export function commitProblem(answer: unknown, module: string, file: string): string | undefined {
  const operations = isRecord(answer) ? answer.operations : undefined;
  if (!isRecord(operations)) return `${module} gave no operations for ${file}`;
  const { owner } = operations as unknown as FileOperations;
  return owner === module ? undefined : `${module} gave operations of '${owner}' for ${file}`;
}

function isSectionHead(section: unknown): section is { name: string; bytes?: unknown } {
  return (
    isRecord(section) &&
    typeof section.name === "string" &&
    Number.isInteger(section.instance) &&
    Number.isInteger(section.version) &&
    typeof section.required === "boolean"
  );
}
