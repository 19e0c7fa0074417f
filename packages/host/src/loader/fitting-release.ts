/** Asks the registry which release of a module this host could load. */
import semver from "semver";
import { within } from "../patience.ts";
import type { ModulePackage, Provided } from "./module-package.ts";
import { isRecord } from "./package-files.ts";

/** A registry that is slow is asked no longer than this, in milliseconds: the answer only helps. */
const PATIENCE_MS = 5000;

/** For a person, after the reason why `module` was refused; empty when nothing can be said. */
export async function fittingRelease(module: ModulePackage, provided: Provided): Promise<string> {
  // What is private was never published under its name
  if (module.json.private === true) return "";
  // It brings a client for HTTP along, which takes longer to load than the rest of the host: most never ask
  const { default: packageJson } = await import("package-json");
  let versions: Readonly<Record<string, unknown>>;
  try {
    const answer = await within(packageJson(module.name, { allVersions: true, fullMetadata: true }), PATIENCE_MS, () => {
      throw new Error("no answer");
    });
    versions = answer.versions;
  } catch {
    return "; the registry could not be asked which release fits";
  }
  const fitting = Object.entries(versions)
    .filter(([version, manifest]) => semver.prerelease(version) === null && fits(manifest, provided))
    .map(([version]) => version);
  const newest = semver.rsort(fitting)[0];
  if (newest === undefined) return `; no published release of ${module.name} fits this host`;
  return `; release ${newest} fits: pnpm add ${module.name}@${newest}`;
}

function fits(manifest: unknown, provided: Provided): boolean {
  if (!isRecord(manifest) || !isRecord(manifest.mkvm) || !isRecord(manifest.mkvm.requires)) return false;
  const { requires } = manifest.mkvm;
  return Object.entries(requires).every(([name, range]) => {
    const present = provided[name];
    return present !== undefined && typeof range === "string" && semver.satisfies(present, range, { includePrerelease: true });
  });
}
