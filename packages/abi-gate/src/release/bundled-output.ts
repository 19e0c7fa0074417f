/**
 * Whether a package would ship another program than it did: from its sources at a git ref and now, each bundled in memory and made
 * small, so that comments and layout do not count; or from the built files of a published version. What a private package brings in
 * counts, what it does not does not.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { build, type Metafile, type Plugin, transform } from "esbuild-wasm";
import { extract } from "tar";
import { GateError, messageOf } from "../errors.ts";
import { git, gitBytes } from "../reference/git.ts";
import { textFiles } from "../reference/registry.ts";
import type { Workspace, WorkspacePackage } from "../workspace.ts";

/** Files whose change reaches what is shipped, from the workspace's root; empty when the output is the same. */
export type OutputChange = readonly string[];

export interface SourceTree {
  readonly root: string;
  /** Files that are not as they were at the commit, from the workspace's root; what git ignores is not among them. */
  readonly changed: readonly string[];
  remove(): void;
}

/** The packages' sources at a commit, in a folder of their own. Nothing is checked out. */
export async function sourcesAt(workspace: Workspace, commit: string): Promise<SourceTree> {
  const root = mkdtempSync(join(tmpdir(), "mkvm-abi-sources-"));
  const remove = () => rmSync(root, { recursive: true, force: true });
  try {
    const archive = await gitBytes(workspace.root, "archive", "--format=tar", commit);
    await new Promise<void>((resolve, reject) => {
      const sink = extract({ cwd: root });
      sink.on("close", resolve);
      sink.on("error", reject);
      sink.end(archive);
    });
  } catch (thrown) {
    remove();
    throw thrown instanceof GateError
      ? thrown
      : new GateError(`the sources at ${commit} cannot be unpacked: ${messageOf(thrown)}`);
  }
  return { root, changed: await changedSince(workspace, commit), remove };
}

async function changedSince(workspace: Workspace, commit: string): Promise<string[]> {
  const lists = await Promise.all([
    git(workspace.root, "diff", "--name-only", "--relative", "-z", commit),
    git(workspace.root, "ls-files", "--others", "--exclude-standard", "-z"),
  ]);
  return lists.flatMap((list) => list.split("\0")).filter((path) => path !== "");
}

/** Compares what `item` ships, built from the sources as they were, with what today's sources give. */
export async function outputChangeFromSources(
  workspace: Workspace,
  item: WorkspacePackage,
  { root: oldRoot, changed: all }: SourceTree,
): Promise<OutputChange> {
  const places = bundledPackages(workspace, item).flatMap(({ path }) => [`${path}/src/`, `${path}/tsup.config.ts`]);
  places.push(`${item.path}/package.json`);
  // Bundling takes seconds, and gives the same of the same
  if (!all.some((path) => places.some((place) => path.startsWith(place)))) return [];
  const [was, is] = [await bundle(workspace, item, oldRoot), await bundle(workspace, item, workspace.root)];
  if (was.digest === is.digest) return [];
  const changed = [...new Set([...was.inputs, ...is.inputs])].filter(
    (path) => contentOf(oldRoot, path) !== contentOf(workspace.root, path),
  );
  return changed.length > 0 ? changed.sort() : [item.path];
}

/** Compares the built files of a published version with those that lie in the workspace. */
export async function outputChangeFromBuilt(item: WorkspacePackage, built: ReadonlyMap<string, string>): Promise<OutputChange> {
  const now = textFiles(join(item.directory, "dist"), (path) => path.endsWith(".js"));
  const changed: string[] = [];
  for (const path of new Set([...built.keys(), ...[...now.keys()].map((name) => `dist/${name}`)])) {
    const [was, is] = [built.get(path), now.get(path.slice("dist/".length))];
    if ((await smallDigest(was)) !== (await smallDigest(is))) changed.push(`${item.path}/${path}`);
  }
  // The names of chunks are digests of their content: the entries that name them are what a reader knows
  return changed.sort();
}

async function smallDigest(text: string | undefined): Promise<string> {
  if (text === undefined) return "";
  const { code } = await transform(text, { minifyWhitespace: true, legalComments: "none", format: "esm" });
  return digest(code);
}

async function bundle(
  workspace: Workspace,
  item: WorkspacePackage,
  root: string,
): Promise<{ digest: string; inputs: string[] }> {
  const folder = join(root, item.path);
  const entries = entriesOf(folder);
  try {
    const result = await build({
      absWorkingDir: root,
      entryPoints: entries,
      outdir: join(root, "never-written"),
      bundle: true,
      splitting: true,
      format: "esm",
      target: "es2024",
      minify: true,
      legalComments: "none",
      metafile: true,
      write: false,
      logLevel: "silent",
      // What a tsconfig says of types is nothing that the output shows
      tsconfigRaw: "{}",
      entryNames: "[name]",
      chunkNames: "[hash]",
      plugins: [workspaceSources(workspace, item, root)],
    });
    const text = result.outputFiles.map((file) => file.text).sort();
    return { digest: digest(text.join("\n")), inputs: shippedInputs(result.metafile, root) };
  } catch (thrown) {
    throw new GateError(`${item.name} cannot be bundled from its sources: ${messageOf(thrown)}`);
  }
}

/** Sources of which something is left in the output. */
function shippedInputs(metafile: Metafile, root: string): string[] {
  const found = new Set<string>();
  for (const output of Object.values(metafile.outputs))
    for (const [path, { bytesInOutput }] of Object.entries(output.inputs))
      if (bytesInOutput > 0) found.add(relative(root, join(root, path)).replaceAll("\\", "/"));
  return [...found];
}

/** Packages of the workspace that `item` may carry parts of: all that it declares for a module, else what is no dependency at run time. */
function bundledPackages(workspace: Workspace, item: WorkspacePackage): WorkspacePackage[] {
  const all = [...workspace.published, ...workspace.private];
  const found = new Set<WorkspacePackage>([item]);
  // A set's iteration reaches what is added meanwhile: what a package declares, and what that declares
  for (const { manifest } of found) {
    const { dependencies, peerDependencies, devDependencies } = manifest;
    const outside = item.manifest.mkvm ? {} : { ...item.manifest.dependencies, ...item.manifest.peerDependencies };
    for (const name of Object.keys({ ...dependencies, ...peerDependencies, ...devDependencies })) {
      const declared = all.find((each) => each.name === name);
      if (declared && !(name in outside)) found.add(declared);
    }
  }
  return [...found];
}

/** Sources of packages that are bundled; all else stays outside, and so do files that only a build makes. */
function workspaceSources(workspace: Workspace, item: WorkspacePackage, root: string): Plugin {
  const bundled = bundledPackages(workspace, item);
  return {
    name: "workspace-sources",
    setup(setup) {
      setup.onResolve({ filter: /^[^./]/ }, ({ path, kind }) => {
        if (kind === "entry-point") return undefined;
        const found = bundled.find(({ name }) => name === path);
        const entry = found && join(root, found.path, "src", "index.ts");
        return entry && existsSync(entry) ? { path: entry, sideEffects: false } : { path, external: true };
      });
      setup.onResolve({ filter: /^\.\.?\// }, ({ path, importer }) => {
        const file = join(dirname(importer), path);
        return existsSync(file) ? undefined : { path, external: true };
      });
    },
  };
}

/** Entries: the sources that the bundler's configuration names. */
function entriesOf(folder: string): string[] {
  const config = join(folder, "tsup.config.ts");
  const text = existsSync(config) ? readFileSync(config, "utf8") : '"src/index.ts"';
  const named = [...text.matchAll(/["'](src\/[^"']+\.ts)["']/g)].map((match) => join(folder, match[1]!));
  return [...new Set(named)].filter((path) => existsSync(path));
}

function contentOf(root: string, path: string): string | undefined {
  const file = join(root, path);
  return existsSync(file) ? readFileSync(file, "utf8") : undefined;
}

function digest(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
