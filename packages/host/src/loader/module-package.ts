/**
 * What a package must be to be loaded as a KVM module: the "mkvm" field of its package.json, checked against what this host
 * has before any code of the package runs.
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import semver from "semver";
import { HostError } from "../errors.ts";
import { findPackage, hostDirectory, isRecord, type PackageFiles } from "./package-files.ts";

export interface ModulePackage extends PackageFiles {
  /** Build-time id, default empty. */
  id: string;
  requires: Record<string, string>;
}

/** Versions of what a module can require. */
export type Provided = Readonly<Record<string, string>>;

/** Versions of kvm-abi and vac that this host runs with. */
export function providedVersions(): Provided {
  const require = createRequire(import.meta.url);
  const versionOf = (name: string): string => {
    const json: { version: string } = JSON.parse(readFileSync(require.resolve(`${name}/package.json`), "utf8"));
    return json.version;
  };
  return { "@mkvm/kvm-abi": versionOf("@mkvm/kvm-abi"), "@mkvm/vac": versionOf("@mkvm/vac") };
}

/**
 * Finds a module's package from `from`, then from the host's own place.
 * @throws HostError when there is none or it is no module
 */
export function findModulePackage(spec: string, from: string): ModulePackage {
  const files = findPackage(spec, [from, hostDirectory]);
  const what = `${files.name} ${files.version}`;
  const field = files.json.mkvm;
  if (!isRecord(field)) {
    throw new HostError(
      "EINVAL",
      `${what} is no KVM module: its package.json has no "mkvm" field; give a package such as @mkvm/kvm-v1`,
    );
  }
  const { id = "", requires = {} } = field;
  if (typeof id !== "string" || !isRecord(requires)) {
    throw new HostError(
      "EINVAL",
      `${what}: "mkvm" in its package.json must be { "id": string, "requires": { package: range } }`,
    );
  }
  checkId(id, what);
  const ranges: Record<string, string> = {};
  for (const [name, range] of Object.entries(requires)) {
    if (typeof range !== "string" || semver.validRange(range) === null) {
      throw new HostError("EINVAL", `${what} requires ${name} ${JSON.stringify(range)}, which is no version range`);
    }
    ranges[name] = range;
  }
  return { ...files, id, requires: ranges };
}

/** Ids name device nodes, so they are short and plain. */
export function checkId(id: string, what: string): void {
  if (!/^[a-z0-9][a-z0-9_-]{0,14}$|^$/i.test(id)) {
    throw new HostError("EINVAL", `${what}: id '${id}' cannot name a device: use up to 15 letters, digits, '-' or '_'`);
  }
}

/**
 * @throws HostError EINVAL when a required range is not what the host has
 */
export function checkRequirements(module: ModulePackage, provided: Provided): void {
  const what = `${module.name} ${module.version}`;
  if (!("@mkvm/kvm-abi" in module.requires)) {
    throw new HostError(
      "EINVAL",
      `${what} does not say which @mkvm/kvm-abi it requires: its package.json needs it under "mkvm"."requires"`,
    );
  }
  for (const [name, range] of Object.entries(module.requires)) {
    const present = provided[name];
    if (present === undefined) {
      const known = Object.keys(provided).join(" and ");
      throw new HostError(
        "EINVAL",
        `${what} requires ${name} ${range}, and this host provides only ${known}: install a release for this host`,
      );
    }
    if (!semver.satisfies(present, range, { includePrerelease: true })) {
      const remedy = semver.ltr(present, range)
        ? "update @mkvm/host"
        : `install a release of ${module.name} for ${name} ${present}`;
      throw new HostError("EINVAL", `${what} requires ${name} ${range}, and this host has ${present}: ${remedy}`);
    }
  }
}
