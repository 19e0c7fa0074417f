/**
 * Which published module versions a change would break: by the range that each requires, and by really loading it. A module that
 * breaks though its range takes the new version is one that nobody would be warned about.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import pacote from "pacote";
import semver from "semver";
import type { Manifest } from "../compare/compare-manifests.ts";
import { GateError, messageOf } from "../errors.ts";
import type { Registry } from "../reference/registry.ts";
import type { PlannedVersion } from "../release/planned-versions.ts";
import { parseManifest, type Workspace } from "../workspace.ts";
import { trialLoad } from "./trial-load.ts";

export interface ModuleVerdict {
  readonly package: string;
  readonly version: string;
  /** Ranges of what it requires that no longer take what this workspace becomes: "@mkvm/vac ^1.0.0, becomes 2.0.0". */
  readonly refusedBy: readonly string[];
  /** What loading it showed; undefined where it was not loaded. */
  readonly trial?: { readonly works: boolean; readonly detail: string };
  /** True when it breaks and no version says so. */
  readonly brokenUnannounced: boolean;
}

/** Newest versions of a package that are really loaded. */
const LOADED_VERSIONS = 10;

/** Modules given as tarballs or folders. */
export async function modulesFromPaths(
  workspace: Workspace,
  paths: readonly string[],
  planned: ReadonlyMap<string, PlannedVersion>,
): Promise<ModuleVerdict[]> {
  const verdicts: ModuleVerdict[] = [];
  for (const path of paths) {
    const absolute = resolve(path);
    if (!existsSync(absolute)) throw new GateError(`no module at '${path}': give a tarball or a package's folder`);
    if (statSync(absolute).isDirectory()) verdicts.push(await verdictOf(workspace, absolute, planned));
    else
      verdicts.push(
        await unpacked(async (directory) => {
          try {
            await pacote.extract(`file:${absolute}`, directory);
          } catch (thrown) {
            throw new GateError(`'${path}' is no tarball of a package: ${messageOf(thrown)}`);
          }
          return verdictOf(workspace, directory, planned);
        }),
      );
  }
  return verdicts;
}

/** Every version of the workspace's modules that the registry has; the newest are loaded. */
export async function modulesFromRegistry(
  workspace: Workspace,
  registry: Registry,
  planned: ReadonlyMap<string, PlannedVersion>,
): Promise<ModuleVerdict[]> {
  const verdicts: ModuleVerdict[] = [];
  for (const { name, manifest } of workspace.published) {
    if (!manifest.mkvm) continue;
    const versions = await registry.versions(name);
    const newest = new Set(semver.rsort(versions.map(({ version }) => version)).slice(0, LOADED_VERSIONS));
    for (const { version, manifest: published } of versions) {
      if (newest.has(version))
        verdicts.push(
          await unpacked(async (directory) => {
            await registry.unpack(name, version, directory);
            return verdictOf(workspace, directory, planned);
          }),
        );
      else {
        const read = parseManifest(published, `${name}@${version}`);
        verdicts.push({ package: name, version, refusedBy: refusals(workspace, read, planned), brokenUnannounced: false });
      }
    }
  }
  return verdicts;
}

async function verdictOf(
  workspace: Workspace,
  directory: string,
  planned: ReadonlyMap<string, PlannedVersion>,
): Promise<ModuleVerdict> {
  const file = join(directory, "package.json");
  if (!existsSync(file)) throw new GateError(`no package at '${directory}': it has no package.json`);
  const manifest = parseManifest(JSON.parse(readFileSync(file, "utf8")), directory);
  if (!manifest.mkvm)
    throw new GateError(`${manifest.name} ${manifest.version} is no KVM module: its package.json has no "mkvm" field`);
  const refusedBy = refusals(workspace, manifest, planned);
  const trial = await trialLoad(directory);
  const brokenUnannounced = refusedBy.length === 0 && !trial.works;
  return { package: manifest.name, version: manifest.version, refusedBy, trial, brokenUnannounced };
}

function refusals(workspace: Workspace, manifest: Manifest, planned: ReadonlyMap<string, PlannedVersion>): string[] {
  return Object.entries(manifest.mkvm?.requires ?? {}).flatMap(([name, range]) => {
    const version = planned.get(name)?.version ?? workspace.published.find((item) => item.name === name)?.manifest.version;
    if (version === undefined) return [`${name} ${range}, which this workspace does not have`];
    return semver.satisfies(version, range, { includePrerelease: true }) ? [] : [`${name} ${range}, becomes ${version}`];
  });
}

async function unpacked<Result>(use: (directory: string) => Promise<Result>): Promise<Result> {
  const scratch = mkdtempSync(join(tmpdir(), "mkvm-abi-module-"));
  try {
    return await use(join(scratch, "package"));
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
