/** The packages of this workspace, as their package.json says. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface Manifest {
  name: string;
  version: string;
  private?: boolean;
  mkvm?: { id?: string; requires?: Record<string, string> };
}

export interface WorkspacePackage {
  /** Path of its package.json, from the workspace's root. */
  readonly file: string;
  readonly manifest: Manifest;
}

export function readWorkspacePackages(): Map<string, WorkspacePackage> {
  const found = new Map<string, WorkspacePackage>();
  for (const folder of readdirSync("packages")) {
    const file = join("packages", folder, "package.json");
    const manifest: Manifest = JSON.parse(readFileSync(file, "utf8"));
    found.set(manifest.name, { file, manifest });
  }
  return found;
}

export function writeManifest(file: string, manifest: Manifest): void {
  writeFileSync(file, `${JSON.stringify(manifest, null, 2)}\n`);
}
