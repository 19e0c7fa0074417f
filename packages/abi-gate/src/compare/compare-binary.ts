/** Compares the binary surfaces of two versions: numbers, structures, sections of VM state, shared memory. */
import type { BinarySurface, SharedMemory, Structure } from "../report/schema.ts";
import { Findings } from "../rules/rule-table.ts";
import { compareStructs, structsDiffer } from "./compare-structs.ts";

export interface BinaryComparisonOptions {
  /** Exports that came or went as a whole: their parts are not listed one by one. */
  readonly changedExports: ReadonlySet<string>;
}

export function compareBinary(
  before: BinarySurface,
  after: BinarySurface,
  options: BinaryComparisonOptions,
  findings: Findings,
): void {
  compareIoctls(before, after, findings);
  compareConstants(before, after, options, findings);
  const old = byName(before.structs);
  const now = byName(after.structs);
  // A section's own structures are judged with its version
  const sectionStructs = new Set(
    [...before.sections, ...after.sections].flatMap(({ fixed, entry }) => [fixed, ...(entry ? [entry] : [])]),
  );
  const usedElsewhere = (structure: Structure) =>
    structure.exportedAs !== undefined || isNested(structure.name, before) || isNested(structure.name, after);
  const alone = (structure: Structure) => !sectionStructs.has(structure.name) || usedElsewhere(structure);
  for (const was of before.structs) {
    const is = now.get(was.name);
    if (is) {
      if (alone(was) && structsDiffer(was, is)) compareStructs(was, is, findings);
    } else if (alone(was) && !options.changedExports.has(was.exportedAs ?? ""))
      findings.add("struct-removed", `struct ${was.name}`, `${was.sizeBytes} bytes -> -`);
  }
  for (const is of after.structs)
    if (!old.has(is.name) && alone(is) && !options.changedExports.has(is.exportedAs ?? ""))
      findings.add("struct-added", `struct ${is.name}`, `- -> ${is.sizeBytes} bytes`);
  const level = compareFeatureLevel(before, after, findings);
  compareSections(before, after, level, findings);
  for (const was of before.sharedMemory) {
    const is = after.sharedMemory.find(({ name }) => name === was.name);
    if (is) compareShared(was, is, { before: old, after: now }, findings);
    else findings.add("shared-block-removed", was.name, `layout ${was.major}.${was.minor} -> -`);
  }
  for (const is of after.sharedMemory)
    if (!before.sharedMemory.some(({ name }) => name === is.name))
      findings.add("shared-block-added", is.name, `- -> layout ${is.major}.${is.minor}`);
}

function compareIoctls(before: BinarySurface, after: BinarySurface, findings: Findings): void {
  const names = new Map(Object.entries(before.ioctls).map(([name, number]) => [number, name]));
  for (const [name, was] of Object.entries(before.ioctls)) {
    const is = after.ioctls[name];
    if (is === undefined) findings.add("ioctl-removed", name, `${hex(was)} -> -`);
    else if (is !== was) findings.add("ioctl-changed", name, `${hex(was)} -> ${hex(is)}`);
  }
  for (const [name, is] of Object.entries(after.ioctls)) {
    if (name in before.ioctls) continue;
    const there = names.get(is);
    const stillThere = there !== undefined && after.ioctls[there] === is;
    if (stillThere) findings.add("ioctl-collides", name, `${hex(is)} is ${there}`);
    else findings.add("ioctl-added", name, `- -> ${hex(is)}`);
  }
}

function compareConstants(
  before: BinarySurface,
  after: BinarySurface,
  options: BinaryComparisonOptions,
  findings: Findings,
): void {
  const whole = (name: string) => options.changedExports.has(name.split(".")[0]!);
  for (const [name, was] of Object.entries(before.constants)) {
    const is = after.constants[name];
    if (is === undefined) {
      if (!whole(name)) findings.add("constant-removed", name, `${was} -> -`);
    } else if (is !== was) findings.add("constant-changed", name, `${was} -> ${is}`);
  }
  for (const [name, is] of Object.entries(after.constants))
    if (!(name in before.constants) && !whole(name)) findings.add("constant-added", name, `- -> ${is}`);
}

function compareFeatureLevel(before: BinarySurface, after: BinarySurface, findings: Findings): "raised" | "same" {
  const [was, is] = [before.featureLevel ?? 0, after.featureLevel ?? 0];
  if (is > was) findings.add("feature-level-raised", "ABI_FEATURE_LEVEL", `${was} -> ${is}`);
  if (is < was) findings.add("feature-level-lowered", "ABI_FEATURE_LEVEL", `${was} -> ${is}`);
  return is > was ? "raised" : "same";
}

function compareSections(before: BinarySurface, after: BinarySurface, level: "raised" | "same", findings: Findings): void {
  const old = byName(before.structs);
  const now = byName(after.structs);
  for (const was of before.sections) {
    const subject = `section ${was.name}`;
    const is = after.sections.find(({ name }) => name === was.name);
    if (!is) {
      findings.add("section-removed", subject, `version ${was.version} -> -`);
      continue;
    }
    if (!was.required && is.required) findings.add("section-made-required", subject, "optional -> required");
    if (was.required && !is.required) findings.add("section-made-optional", subject, "required -> optional");
    if (is.version > was.version) {
      const rule = level === "raised" ? "section-version-raised-with-level" : "section-version-raised";
      findings.add(rule, subject, `version ${was.version} -> version ${is.version}`);
    } else if (is.version < was.version)
      findings.add("section-version-lowered", subject, `version ${was.version} -> version ${is.version}`);
    else {
      comparePart(was.fixed, is.fixed, subject, { old, now }, findings);
      comparePart(was.entry, is.entry, `${subject}[]`, { old, now }, findings);
    }
  }
  for (const is of after.sections) {
    if (before.sections.some(({ name }) => name === is.name)) continue;
    const rule = !is.required
      ? "section-added-optional"
      : level === "raised"
        ? "section-added-with-level"
        : "section-added-required";
    findings.add(rule, `section ${is.name}`, `- -> version ${is.version}, ${is.required ? "required" : "optional"}`);
  }
  const common = (from: BinarySurface, other: BinarySurface) =>
    from.sections.map(({ name }) => name).filter((name) => other.sections.some((section) => section.name === name));
  const [wasOrder, isOrder] = [common(before, after), common(after, before)];
  if (wasOrder.join() !== isOrder.join()) {
    const first = wasOrder.findIndex((name, i) => name !== isOrder[i]);
    findings.add("section-reordered", "sections", `${wasOrder[first]} -> ${isOrder[first]} in place ${first + 1}`);
  }
}

/** One part of a section whose version stayed. Only reserved bytes may have got a meaning. */
function comparePart(
  was: string | undefined,
  is: string | undefined,
  subject: string,
  structs: { old: ReadonlyMap<string, Structure>; now: ReadonlyMap<string, Structure> },
  findings: Findings,
): void {
  const [before, after] = [
    was === undefined ? undefined : structs.old.get(was),
    is === undefined ? undefined : structs.now.get(is),
  ];
  if (!before && !after) return;
  if (!before || !after) {
    findings.add("section-layout-changed", subject, `${was ?? "no entries"} -> ${is ?? "no entries"}`);
    return;
  }
  if (!structsDiffer({ ...before, name: after.name }, after)) return;
  const inner = new Findings(findings.package);
  compareStructs(before, after, inner);
  const harmless = inner.all.length > 0 && inner.all.every(({ rule }) => rule === "reserved-field-used");
  for (const finding of inner.all)
    findings.add(harmless ? "reserved-field-used" : "section-layout-changed", `${subject}: ${finding.subject}`, finding.detail);
}

function compareShared(
  was: SharedMemory,
  is: SharedMemory,
  structs: { before: ReadonlyMap<string, Structure>; after: ReadonlyMap<string, Structure> },
  findings: Findings,
): void {
  if (was.magic !== is.magic) findings.add("shared-magic-changed", was.name, `${hex(was.magic)} -> ${hex(is.magic)}`);
  const version = `${was.major}.${was.minor} -> ${is.major}.${is.minor}`;
  const isSameMajor = was.major === is.major;
  if (!isSameMajor) findings.add("shared-major-changed", was.name, version);
  else if (is.minor > was.minor) findings.add("shared-minor-raised", was.name, version);
  else if (is.minor < was.minor) findings.add("shared-minor-lowered", was.name, version);
  let grew = false;
  for (const block of was.blocks) {
    const now = is.blocks.find(({ name }) => name === block.name);
    const subject = `${was.name}.${block.name}`;
    if (!now) {
      findings.add("shared-block-removed", subject, `${blockText(block)} -> -`);
      continue;
    }
    const [before, after] = [structs.before.get(block.struct ?? ""), structs.after.get(now.struct ?? "")];
    // A stride that the header states may grow with its structure: struct-appended says that
    const mayGrow = Boolean(before?.sizeNegotiatedBy && after?.sizeNegotiatedBy) && now.strideBytes > block.strideBytes;
    if (block.offset !== now.offset || block.count !== now.count || (block.strideBytes !== now.strideBytes && !mayGrow))
      findings.add("shared-block-moved", subject, `${blockText(block)} -> ${blockText(now)}`);
    if (before && after?.fields.some(({ name }) => !before.fields.some((field) => field.name === name))) grew = true;
  }
  is.blocks.forEach((block, i) => {
    if (was.blocks.some(({ name }) => name === block.name)) return;
    grew = true;
    const isBehind = is.blocks.slice(i + 1).every(({ name }) => !was.blocks.some((old) => old.name === name));
    if (isBehind) findings.add("shared-block-added", `${was.name}.${block.name}`, `- -> ${blockText(block)}`);
    else
      findings.add(
        "shared-block-moved",
        `${was.name}.${block.name}`,
        `- -> ${blockText(block)}, before ${is.blocks[i + 1]!.name}`,
      );
  });
  if (grew && isSameMajor && is.minor === was.minor) findings.add("shared-minor-not-raised", was.name, version);
}

function isNested(name: string, surface: BinarySurface): boolean {
  const type = `struct ${name}`;
  const uses = (field: { type: string; members?: { type: string }[] | undefined }): boolean =>
    field.type === type || field.type.startsWith(`${type}[`) || (field.members?.some(uses) ?? false);
  return surface.structs.some(({ fields }) => fields.some(uses));
}

function blockText(block: SharedMemory["blocks"][number]): string {
  return `at ${block.offset ?? "the end"}, ${block.count ?? "a machine's count"} of ${block.strideBytes} bytes`;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

function byName(structs: readonly Structure[]): Map<string, Structure> {
  return new Map(structs.map((structure) => [structure.name, structure]));
}
