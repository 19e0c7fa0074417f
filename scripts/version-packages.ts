/**
 * `pnpm version-packages`: versions and changelogs by the pending changesets, then what changesets does not know of: ranges under
 * "mkvm"."requires" that no longer include the workspace's version are moved to it. A range that still does is left alone, so that
 * a module goes on loading on the hosts that it loads on today.
 */
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import semver from "semver";
import { readWorkspacePackages, writeManifest } from "./workspace-packages.ts";

const changesets = createRequire(import.meta.url).resolve("@changesets/cli/package.json");
const { status } = spawnSync(process.execPath, [join(dirname(changesets), "bin.js"), "version"], { stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);

const packages = readWorkspacePackages();
for (const { file, manifest } of packages.values()) {
  const requires = manifest.mkvm?.requires;
  if (requires === undefined) continue;
  let changed = false;
  for (const [name, range] of Object.entries(requires)) {
    const version = packages.get(name)?.manifest.version;
    if (version === undefined) throw new Error(`${manifest.name} requires ${name}, which is no package of this workspace`);
    if (semver.satisfies(version, range, { includePrerelease: true })) continue;
    requires[name] = `^${version}`;
    changed = true;
  }
  if (changed) writeManifest(file, manifest);
}
