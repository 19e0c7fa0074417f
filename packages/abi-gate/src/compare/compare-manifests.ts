/** Compares what two package.json files promise. */
import semver from "semver";
import { z } from "zod";
import type { Findings, RuleId } from "../rules/rule-table.ts";

const RangesSchema = z.record(z.string(), z.string()).optional();

/** What the gate looks at in a package.json. Other fields are let through. */
export const ManifestSchema = z.looseObject({
  name: z.string(),
  version: z.string(),
  private: z.boolean().optional(),
  type: z.string().optional(),
  engines: RangesSchema,
  exports: z.unknown().optional(),
  bin: z.union([z.string(), z.record(z.string(), z.string())]).optional(),
  dependencies: RangesSchema,
  devDependencies: RangesSchema,
  peerDependencies: RangesSchema,
  peerDependenciesMeta: z.record(z.string(), z.looseObject({ optional: z.boolean().optional() })).optional(),
  mkvm: z.looseObject({ id: z.string().optional(), requires: RangesSchema }).optional(),
});
export type Manifest = z.infer<typeof ManifestSchema>;

export function compareManifests(before: Manifest, after: Manifest, findings: Findings): void {
  compareEach(before.engines, after.engines, "engines", findings, (was, is) => {
    if (was === undefined || (is !== undefined && !covers(is, was))) return "engines-narrowed";
    return "engines-widened";
  });
  compareEntries(before.exports, after.exports, findings);
  const commands = (manifest: Manifest) =>
    typeof manifest.bin === "string" ? [manifest.name.replace(/^@[^/]*\//, "")] : Object.keys(manifest.bin ?? {});
  for (const name of commands(before))
    if (!commands(after).includes(name)) findings.add("command-removed", `bin.${name}`, `${name} -> -`);
  for (const name of commands(after))
    if (!commands(before).includes(name)) findings.add("command-added", `bin.${name}`, `- -> ${name}`);
  if ((before.type ?? "commonjs") !== (after.type ?? "commonjs"))
    findings.add("module-format-changed", "type", `${before.type ?? "commonjs"} -> ${after.type ?? "commonjs"}`);
  const optional = (manifest: Manifest, name: string) => manifest.peerDependenciesMeta?.[name]?.optional === true;
  compareEach(before.peerDependencies, after.peerDependencies, "peerDependencies", findings, (was, is, name) => {
    if (is === undefined) return "peer-widened";
    if (was === undefined) return optional(after, name) ? "peer-widened" : "peer-narrowed";
    return covers(is, was) ? "peer-widened" : "peer-narrowed";
  });
  for (const name of Object.keys(before.peerDependencies ?? {}))
    if (name in (after.peerDependencies ?? {}) && optional(before, name) !== optional(after, name))
      findings.add(
        optional(after, name) ? "peer-widened" : "peer-narrowed",
        `peerDependencies.${name}`,
        optional(after, name) ? "required -> optional" : "optional -> required",
      );
  if (before.mkvm && after.mkvm) {
    if ((before.mkvm.id ?? "") !== (after.mkvm.id ?? ""))
      findings.add("module-id-changed", "mkvm.id", `${before.mkvm.id ?? ""} -> ${after.mkvm.id ?? ""}`);
    compareEach(before.mkvm.requires, after.mkvm.requires, "mkvm.requires", findings, (was, is) => {
      if (is === undefined) return "requirement-widened";
      return was !== undefined && covers(is, was) ? "requirement-widened" : "requirement-narrowed";
    });
  }
  compareEach(before.dependencies, after.dependencies, "dependencies", findings, () => "dependency-changed");
}

/** Every version in `narrow` is in `wide`. What is no range (a workspace's own protocol) covers only itself. */
function covers(wide: string, narrow: string): boolean {
  if (wide === narrow) return true;
  if (semver.validRange(wide) === null || semver.validRange(narrow) === null) return false;
  return semver.subset(narrow, wide, { includePrerelease: true });
}

function compareEach(
  before: Record<string, string> | undefined,
  after: Record<string, string> | undefined,
  field: string,
  findings: Findings,
  ruleOf: (was: string | undefined, is: string | undefined, name: string) => RuleId,
): void {
  for (const name of new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])) {
    const [was, is] = [before?.[name], after?.[name]];
    if (was !== is) findings.add(ruleOf(was, is, name), `${field}.${name}`, `${was ?? "-"} -> ${is ?? "-"}`);
  }
}

function compareEntries(before: unknown, after: unknown, findings: Findings): void {
  const [old, now] = [entriesOf(before), entriesOf(after)];
  for (const entry of old) if (!now.includes(entry)) findings.add("entry-removed", `exports ${entry}`, `${entry} -> -`);
  for (const entry of now) if (!old.includes(entry)) findings.add("entry-added", `exports ${entry}`, `- -> ${entry}`);
}

/** Paths and conditions: ["." types", "." import", "./package.json"]. */
function entriesOf(exports: unknown, path = ""): string[] {
  if (typeof exports === "string" || exports === null || exports === undefined) return path || exports ? [path || "."] : [];
  return Object.entries(exports).flatMap(([key, value]) => entriesOf(value, path ? `${path} ${key}` : key));
}
