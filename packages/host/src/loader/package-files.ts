/**
 * Finds packages on disk and reads what their package.json says, without running any of their code.
 */
import { existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { HostError, messageOf } from "../errors.ts";

export interface PackageFiles {
  name: string;
  version: string;
  directory: string;
  /** URL to import, with the version and the file's time of change: changed code is imported anew, unchanged code once. */
  entryUrl: string;
  json: Record<string, unknown>;
}

/** Where the host itself looks for packages last. */
export const hostDirectory = dirname(fileURLToPath(import.meta.url));

/**
 * Resolves `spec`, a package's name or a path to its directory, from each of `directories` in turn.
 * @throws HostError ENOENT (not found) or EINVAL (no usable package there)
 */
export function findPackage(spec: string, directories: readonly string[]): PackageFiles {
  const found = packageDirectory(spec, directories);
  if (found !== undefined) return readPackage(found);
  throw new HostError(
    "ENOENT",
    isPath(spec)
      ? `no package at '${spec}' (no package.json there): give a package's directory or its name`
      : `package ${spec} is not installed: add it with 'pnpm add ${spec}', or give a path to its directory`,
  );
}

/**
 * Where a package's package.json is, or undefined when there is none.
 * @throws HostError EINVAL when `spec` is neither a package's name nor a path
 */
export function packageDirectory(spec: string, directories: readonly string[]): string | undefined {
  const isPackage = (directory: string) => existsSync(join(directory, "package.json"));
  if (isPath(spec)) return directories.map((directory) => resolve(directory, spec)).find(isPackage);
  if (!/^(@[a-z0-9._~-]+\/)?[a-z0-9._~-]+$/i.test(spec)) {
    throw new HostError("EINVAL", `'${spec}' is neither a package name nor a path: paths begin with './' or '/'`);
  }
  const roots = directories.flatMap((directory) => [...ancestors(resolve(directory))]);
  return roots.map((root) => join(root, "node_modules", spec)).find(isPackage);
}

function isPath(spec: string): boolean {
  return spec.startsWith(".") || isAbsolute(spec);
}

function* ancestors(directory: string): Generator<string> {
  for (let current = directory; ; current = dirname(current)) {
    yield current;
    if (dirname(current) === current) return;
  }
}

function readPackage(candidate: string): PackageFiles {
  const directory = realpathSync(candidate);
  let json: Record<string, unknown>;
  try {
    const parsed: unknown = JSON.parse(readFileSync(join(directory, "package.json"), "utf8"));
    if (!isRecord(parsed)) throw new Error("not an object");
    json = parsed;
  } catch (thrown) {
    throw new HostError("EINVAL", `package.json of ${directory} cannot be read: ${messageOf(thrown)}`);
  }
  const { name, version } = json;
  if (typeof name !== "string" || typeof version !== "string") {
    throw new HostError("EINVAL", `package.json of ${directory} has no name or no version`);
  }
  const entry = entryOf(json);
  const file = entry && join(directory, entry);
  if (!file || !existsSync(file)) {
    throw new HostError(
      "ENOENT",
      `${name} ${version} has no built entry (${entry ?? "no exports"} in ${directory}): build or reinstall it`,
    );
  }
  const url = pathToFileURL(file);
  url.searchParams.set("v", `${version}-${Math.trunc(statSync(file).mtimeMs)}`);
  return { name, version, directory, entryUrl: url.href, json };
}

/** The "." entry for `import`, relative to the package. */
function entryOf(json: Record<string, unknown>): string | undefined {
  const { exports, main } = json;
  const root = isRecord(exports) && "." in exports ? exports["."] : exports;
  return conditional(root) ?? (typeof main === "string" ? main : undefined);
}

function conditional(target: unknown): string | undefined {
  if (typeof target === "string") return target;
  if (!isRecord(target)) return undefined;
  for (const [condition, value] of Object.entries(target)) {
    if (condition === "node" || condition === "import" || condition === "default") {
      const found = conditional(value);
      if (found) return found;
    }
  }
  return undefined;
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
