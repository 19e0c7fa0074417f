/** The last release of each package: the tags that `changeset publish` leaves. */
import semver from "semver";
import { GateError } from "../errors.ts";
import type { Workspace } from "../workspace.ts";
import type { Baseline, BaselinePackage } from "./baseline.ts";
import { commitOf, git } from "./git.ts";
import { gitBaseline } from "./git-ref.ts";

/** Undefined when nothing was released before HEAD. */
export async function lastReleaseBaseline(workspace: Workspace): Promise<Baseline | undefined> {
  await commitOf(workspace.root, "HEAD");
  const tags = (await git(workspace.root, "tag", "--merged", "HEAD")).split("\n");
  const packages = new Map<string, BaselinePackage>();
  const labels: string[] = [];
  const atTag = new Map<string, Baseline>();
  for (const { name } of workspace.published) {
    const versions = tags.filter((tag) => tag.startsWith(`${name}@`)).map((tag) => tag.slice(name.length + 1));
    const last = semver.rsort(versions.filter((version) => semver.valid(version)))[0];
    if (last === undefined) continue;
    const tag = `${name}@${last}`;
    const baseline = atTag.get(tag) ?? (await gitBaseline(workspace, tag));
    atTag.set(tag, baseline);
    const found = baseline.packages.get(name);
    if (!found) throw new GateError(`tag ${tag} has no package ${name}: give the ref to compare with by --against`);
    packages.set(name, found);
    labels.push(tag);
  }
  return packages.size === 0 ? undefined : { label: `last release (${labels.join(", ")})`, packages };
}
