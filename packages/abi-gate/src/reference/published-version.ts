/** Reports that published versions carry. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import semver from "semver";
import { GateError } from "../errors.ts";
import { parseReport } from "../report/schema.ts";
import { parseManifest, reportPath, type Workspace } from "../workspace.ts";
import type { Baseline, BaselinePackage } from "./baseline.ts";
import { type Registry, textFiles } from "./registry.ts";

/** What `--against` says, when it is a version: of one package, or (name undefined) of all. */
export interface VersionSpec {
  readonly name?: string;
  readonly version: string;
}

/** "1.2.0", "@mkvm/vac@1.2.0"; undefined when it looks like something else, as a git ref does. */
export function versionSpec(text: string): VersionSpec | undefined {
  const plain = semver.valid(text);
  if (plain) return { version: plain };
  const match = /^(@[^/@]+\/[^/@]+|[^/@]+)@([^@]+)$/.exec(text);
  const version = match && semver.valid(match[2]!);
  return version ? { name: match[1]!, version } : undefined;
}

export async function publishedBaseline(workspace: Workspace, spec: VersionSpec, registry: Registry): Promise<Baseline> {
  const { name, version } = spec;
  const known = workspace.published.map((item) => item.name);
  if (name !== undefined && !known.includes(name))
    throw new GateError(`${name} is no published package of this workspace: there is ${known.join(", ")}`);
  const packages = new Map<string, BaselinePackage>();
  const scratch = mkdtempSync(join(tmpdir(), "mkvm-abi-published-"));
  try {
    for (const each of name === undefined ? known : [name]) {
      if (name === undefined && !(await registry.versions(each)).some((published) => published.version === version)) continue;
      packages.set(each, await publishedPackage(each, version, registry, join(scratch, String(packages.size))));
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  if (packages.size === 0)
    throw new GateError(`registry ${registry.url} has no package of this workspace in version ${version}`);
  return {
    label: `${name ?? "version "}${name ? "@" : ""}${version} of ${registry.url}`,
    packages,
    only: [...packages.keys()],
  };
}

async function publishedPackage(
  name: string,
  version: string,
  registry: Registry,
  directory: string,
): Promise<BaselinePackage> {
  await registry.unpack(name, version, directory);
  const manifest = parseManifest(JSON.parse(readFileSync(join(directory, "package.json"), "utf8")), `${name}@${version}`);
  const path = join(directory, reportPath(name));
  if (!existsSync(path)) throw new GateError(`${name}@${version} was published without an ABI report: give a later version`);
  const report = parseReport(readFileSync(path, "utf8"), `${name}@${version}`);
  return { manifest, report, built: textFiles(directory, (file) => file.startsWith("dist/") && file.endsWith(".js")) };
}
