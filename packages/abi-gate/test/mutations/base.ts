/** The packages as they are built, which mutations change. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Manifest, OtherPackages, PackageState } from "../../src/index.ts";
import { typeApiOf } from "../../src/report/declarations.ts";
import { packageReport } from "../../src/report/package-report.ts";
import { type BinarySurface, SCHEMA_NAME, SCHEMA_VERSION } from "../../src/report/schema.ts";
import { builtFile, findWorkspace, type WorkspacePackage } from "../../src/workspace.ts";

const workspace = await findWorkspace(join(import.meta.dirname, "..", "..", ".."));
const byName = new Map(workspace.published.map((item) => [item.name, item]));
const declarations = new Map(workspace.published.map((item) => [item.name, readFileSync(builtFile(item, "types"), "utf8")]));
const surfaces = new Map<string, BinarySurface>();
for (const name of ["@mkvm/kvm-abi", "@mkvm/vac"]) surfaces.set(name, (await packageReport(packageNamed(name))).binary!);

export const others: OtherPackages = declarations;

export function packageNamed(name: string): WorkspacePackage {
  const found = byName.get(name);
  if (!found) throw new Error(`no published package is called ${name}`);
  return found;
}

export function declarationsOf(name: string): string {
  return declarations.get(name)!;
}

export interface Changes {
  readonly declarations?: string;
  readonly manifest?: (manifest: Manifest) => void;
  readonly binary?: (surface: BinarySurface) => void;
}

/** A package with changes made to it; without, as it is. */
export function stateOf(name: string, changes: Changes = {}): PackageState {
  const manifest = structuredClone(packageNamed(name).manifest);
  changes.manifest?.(manifest);
  const binary = structuredClone(surfaces.get(name));
  if (binary) changes.binary?.(binary);
  const api = typeApiOf(name, changes.declarations ?? declarationsOf(name));
  return {
    manifest,
    report: { schema: SCHEMA_NAME, schemaVersion: SCHEMA_VERSION, package: name, api, ...(binary ? { binary } : {}) },
  };
}
