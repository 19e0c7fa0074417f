/** A registry with a first release of every package. Whichever file of a run wants one first makes it, the others take a copy. */
import { cpSync, existsSync, mkdirSync, renameSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { inject } from "vitest";
import { type LoopbackRegistry, startLoopbackRegistry } from "./loopback-registry.ts";
import { type Bump, WorkspaceRelease } from "./workspace-release.ts";

const lookMs = 200;

/** Everything is published, as 1.0.0. The registry is the caller's own. */
export async function startPublishedRegistry(): Promise<LoopbackRegistry> {
  const shared = join(inject("runFolder"), "first-release");
  const making = `${shared}.making`;
  while (!existsSync(shared)) {
    if (isFirst(making)) {
      try {
        await publishInto(shared);
      } finally {
        rmdirSync(making);
      }
    } else await setTimeout(lookMs);
  }
  return startLoopbackRegistry(shared);
}

function isFirst(making: string): boolean {
  try {
    mkdirSync(making);
    return true;
  } catch {
    return false;
  }
}

async function publishInto(folder: string): Promise<void> {
  const registry = await startLoopbackRegistry();
  let release: WorkspaceRelease | undefined;
  try {
    release = await WorkspaceRelease.create(registry.env);
    const names = [...release.packages().keys()];
    await release.version(Object.fromEntries(names.map((name) => [name, "major" as Bump])), "First release.");
    const { status, stdout, stderr } = await release.publish();
    if (status !== 0) throw new Error(`the first release could not be published: ${stdout}${stderr}`);
    cpSync(registry.storage, `${folder}.part`, { recursive: true });
    renameSync(`${folder}.part`, folder);
  } finally {
    release?.remove();
    await registry.close();
  }
}
