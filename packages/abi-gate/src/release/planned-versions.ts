/** The versions that pending changesets lead to. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import getReleasePlan from "@changesets/get-release-plan";
import { GateError, messageOf } from "../errors.ts";
import type { Workspace } from "../workspace.ts";

export interface PlannedVersion {
  readonly version: string;
  /** Ids of the changesets that name the package. */
  readonly changesets: readonly string[];
}

/** Packages without pending changes stay at the version of their package.json. */
export async function plannedVersions(workspace: Workspace): Promise<Map<string, PlannedVersion>> {
  const planned = new Map<string, PlannedVersion>(
    workspace.published.map(({ name, manifest }) => [name, { version: manifest.version, changesets: [] }]),
  );
  if (!existsSync(join(workspace.root, ".changeset"))) return planned;
  try {
    const plan = await getReleasePlan(workspace.root);
    for (const { name, newVersion, changesets } of plan.releases)
      if (newVersion !== undefined && planned.has(name)) planned.set(name, { version: newVersion, changesets });
  } catch (thrown) {
    throw new GateError(`the pending changesets cannot be read: ${messageOf(thrown)}`);
  }
  return planned;
}
