/** Reports that were committed at a git ref, read from git's objects: nothing is checked out or built. */
import { GateError } from "../errors.ts";
import { parseReport } from "../report/schema.ts";
import { parseManifest, reportPath, type Workspace } from "../workspace.ts";
import type { Baseline, BaselinePackage } from "./baseline.ts";
import { commitOf, git } from "./git.ts";

export async function gitBaseline(workspace: Workspace, ref: string): Promise<Baseline> {
  const commit = await commitOf(workspace.root, ref);
  const label = `git ref ${ref} (${commit.slice(0, 10)})`;
  // Below the workspace's root, which need not be the repository's
  const paths = (await git(workspace.root, "ls-tree", "-r", "--name-only", commit)).split("\n");
  const packages = new Map<string, BaselinePackage>();
  const without: string[] = [];
  for (const path of paths) {
    if (!path.endsWith("/package.json")) continue;
    const directory = path.slice(0, -"/package.json".length);
    if (!isPackageFolder(directory, workspace)) continue;
    const manifest = parseManifest(JSON.parse(await git(workspace.root, "show", `${commit}:./${path}`)), `${path} at ${ref}`);
    if (manifest.private || manifest.exports === undefined) continue;
    const report = `${directory}/${reportPath(manifest.name)}`;
    if (!paths.includes(report)) {
      without.push(manifest.name);
      continue;
    }
    const text = await git(workspace.root, "show", `${commit}:./${report}`);
    packages.set(manifest.name, { manifest, report: parseReport(text, `${manifest.name} at ${ref}`), commit });
  }
  if (packages.size === 0) throw new GateError(`${label} has no ABI reports: give a later ref, or a published version`);
  if (without.length > 0)
    throw new GateError(`${label} has no ABI report of ${without.join(", ")}: give a later ref, or a published version`);
  return { label, packages };
}

/** Folders that hold packages now held them then: package.json files elsewhere (tests, fixtures) are no packages. */
function isPackageFolder(directory: string, workspace: Workspace): boolean {
  const parent = directory.slice(0, directory.lastIndexOf("/") + 1);
  return [...workspace.published, ...workspace.private].some(({ path }) => path.slice(0, path.lastIndexOf("/") + 1) === parent);
}
