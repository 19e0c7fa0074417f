/** The workspace that is gated: its packages, and where their parts are. */
import { existsSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { getPackages } from "@manypkg/get-packages";
import { type Manifest, ManifestSchema } from "./compare/compare-manifests.ts";
import { GateError, messageOf } from "./errors.ts";

export interface WorkspacePackage {
  readonly name: string;
  /** Absolute. */
  readonly directory: string;
  /** From the workspace's root, with "/". */
  readonly path: string;
  readonly manifest: Manifest;
}

export interface Workspace {
  readonly root: string;
  /** Published ones, by name. */
  readonly published: readonly WorkspacePackage[];
  /** Private ones: never published, bundled where they are needed. */
  readonly private: readonly WorkspacePackage[];
}

/** Finds the workspace around `directory`. */
export async function findWorkspace(directory: string): Promise<Workspace> {
  let found: Awaited<ReturnType<typeof getPackages>>;
  try {
    found = await getPackages(directory);
  } catch (thrown) {
    throw new GateError(
      `${directory} is in no workspace with packages: run this in a repository of packages (${messageOf(thrown)})`,
    );
  }
  const packages = found.packages
    .map(({ dir, packageJson }): WorkspacePackage => {
      const manifest = parseManifest(packageJson, dir);
      return { name: manifest.name, directory: dir, path: relative(found.rootDir, dir).replaceAll("\\", "/"), manifest };
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  // Only packages that export something promise anything
  const promising = packages.filter(({ manifest }) => manifest.exports !== undefined);
  return {
    root: found.rootDir,
    published: promising.filter(({ manifest }) => !manifest.private),
    private: promising.filter(({ manifest }) => manifest.private),
  };
}

export function parseManifest(value: unknown, where: string): Manifest {
  const read = ManifestSchema.safeParse(value);
  if (read.success) return read.data;
  const issue = read.error.issues[0]!;
  throw new GateError(`package.json of ${where} cannot be used: ${issue.path.join(".")}: ${issue.message}`);
}

/** The manifest as it is published: ranges of the workspace's own protocol become those that packing writes. */
export function publishedManifest(workspace: Workspace, manifest: Manifest): Manifest {
  const versions = new Map([...workspace.published, ...workspace.private].map((item) => [item.name, item.manifest.version]));
  const ranges = (given: Record<string, string> | undefined) =>
    given &&
    Object.fromEntries(
      Object.entries(given).map(([name, range]) => {
        if (!range.startsWith("workspace:")) return [name, range];
        const rest = range.slice("workspace:".length);
        const version = versions.get(name) ?? "";
        return [name, rest === "*" ? version : rest === "^" || rest === "~" ? `${rest}${version}` : rest];
      }),
    );
  const { dependencies, peerDependencies } = manifest;
  return { ...manifest, dependencies: ranges(dependencies), peerDependencies: ranges(peerDependencies) };
}

/** Path of a package's report within the package. */
export function reportPath(packageName: string): string {
  return `etc/${unscoped(packageName)}.abi.json`;
}

export function unscoped(packageName: string): string {
  return packageName.replace(/^@[^/]*\//, "");
}

/** The built file that `condition` ("types", "import") of the package's "." leads to. */
export function builtFile(item: WorkspacePackage, condition: "types" | "import"): string {
  const exports = item.manifest.exports as Record<string, unknown> | undefined;
  const root = exports?.["."] as Record<string, unknown> | undefined;
  const target = root?.[condition];
  const path = typeof target === "string" ? join(item.directory, target) : undefined;
  if (path === undefined || !existsSync(path))
    throw new GateError(
      `${item.name} has no built ${condition === "types" ? "declarations" : "code"} (${target ?? `no "${condition}" in exports`}): build it first`,
    );
  return path;
}

export function readBuilt(item: WorkspacePackage, condition: "types" | "import"): string {
  return readFileSync(builtFile(item, condition), "utf8");
}
