/** `mkvm abi check`: everything that a release would change, and whether its versions say so. */
import { comparePackages } from "./compare/compare-packages.ts";
import type { OtherPackages } from "./compare/type-program.ts";
import type { Baseline, BaselinePackage } from "./reference/baseline.ts";
import { gitBaseline } from "./reference/git-ref.ts";
import { lastReleaseBaseline } from "./reference/last-release.ts";
import { publishedBaseline, versionSpec } from "./reference/published-version.ts";
import { Registry } from "./reference/registry.ts";
import { type Bump, bumpBetween, isEnough, neededBump } from "./release/bumps.ts";
import { outputChangeFromBuilt, outputChangeFromSources, type SourceTree, sourcesAt } from "./release/bundled-output.ts";
import { type PlannedVersion, plannedVersions } from "./release/planned-versions.ts";
import { packageReport } from "./report/package-report.ts";
import { type ChangeClass, classOf, type Finding } from "./rules/rule.ts";
import { ruleOf } from "./rules/rule-table.ts";
import { type Leak, surfaceLeaks } from "./surface/surface-leaks.ts";
import { type ModuleVerdict, modulesFromPaths, modulesFromRegistry } from "./trial/published-modules.ts";
import { findWorkspace, publishedManifest, readBuilt, type Workspace, type WorkspacePackage } from "./workspace.ts";

export interface CheckOptions {
  /** A folder in the workspace. */
  readonly directory: string;
  /** "1.2.0", "@mkvm/vac@1.2.0", a git ref, or "last-release". */
  readonly against: string;
  /** Published modules to try: tarballs or folders. */
  readonly modules?: readonly string[];
  /** URL; by default what npm is configured to use. Given, published modules are fetched from it and tried. */
  readonly registry?: string;
  readonly allowVacMajor?: boolean;
  /** With "last-release": nothing was released yet, and that is no failure. */
  readonly allowNoRelease?: boolean;
}

export interface PackageVerdict {
  readonly package: string;
  /** Version compared with; undefined when the package is new. */
  readonly from?: string;
  /** Version that the pending changesets lead to. */
  readonly to: string;
  readonly class?: ChangeClass;
  readonly needs: Bump;
  readonly has: Bump;
  readonly enough: boolean;
  readonly findings: readonly Finding[];
}

export interface CheckResult {
  readonly against: string;
  readonly packages: readonly PackageVerdict[];
  readonly modules: readonly ModuleVerdict[];
  readonly leaks: readonly Leak[];
  /** What stands against the release, one line each; empty when it may go out. */
  readonly failures: readonly string[];
  /** What was not looked at, and why. */
  readonly notes: readonly string[];
}

/** Packages whose major version never changes: every module on a host works over one and the same of it. */
const appendOnly = ["@mkvm/vac"];

/** @throws GateError when something cannot be read; nothing is changed in any case */
export async function check(options: CheckOptions): Promise<CheckResult> {
  const workspace = await findWorkspace(options.directory);
  // Before the first release too: what cannot be read then could not be released
  const planned = await plannedVersions(workspace);
  const spec = versionSpec(options.against);
  const needsRegistry = spec !== undefined || options.registry !== undefined;
  const registry = needsRegistry ? new Registry(options.registry) : undefined;
  try {
    let baseline: Baseline | undefined;
    if (spec) baseline = await publishedBaseline(workspace, spec, registry!);
    else if (options.against === "last-release") baseline = await lastReleaseBaseline(workspace);
    else baseline = await gitBaseline(workspace, options.against);
    if (!baseline) return nothingReleased(options.allowNoRelease ?? false);
    return await compareWith(workspace, planned, baseline, registry, options);
  } finally {
    registry?.close();
  }
}

function nothingReleased(isAllowed: boolean): CheckResult {
  const said =
    "no package of this workspace was released yet: no tag NAME@VERSION leads to HEAD, so there is nothing to compare with";
  const failures = isAllowed ? [] : [`${said}; --allow-no-release lets that pass`];
  return { against: "last-release", packages: [], modules: [], leaks: [], failures, notes: isAllowed ? [said] : [] };
}

async function compareWith(
  workspace: Workspace,
  planned: ReadonlyMap<string, PlannedVersion>,
  baseline: Baseline,
  registry: Registry | undefined,
  options: CheckOptions,
): Promise<CheckResult> {
  const compared = workspace.published.filter(({ name }) => baseline.only?.includes(name) ?? true);
  const others: OtherPackages = new Map(workspace.published.map((item) => [item.name, readBuilt(item, "types")]));
  const trees = new Map<string, SourceTree>();
  const packages: PackageVerdict[] = [];
  try {
    for (const item of compared) {
      const before = baseline.packages.get(item.name);
      const findings = before ? await differences(workspace, item, before, others, trees) : [newPackage(item)];
      packages.push(verdict(item.name, before?.manifest.version, planned, findings));
    }
  } finally {
    for (const tree of trees.values()) tree.remove();
  }
  for (const [name, { manifest }] of baseline.packages)
    if (!workspace.published.some((item) => item.name === name)) packages.push(gonePackage(name, manifest.version));

  const leaks: Leak[] = [];
  for (const item of compared) leaks.push(...surfaceLeaks(workspace, item));
  const notes: string[] = [];
  const modules = [...(await modulesFromPaths(workspace, options.modules ?? [], planned))];
  if (registry) modules.push(...(await modulesFromRegistry(workspace, registry, planned)));
  else if (!options.modules?.length)
    notes.push("published modules were not tried: give them by --modules, or a registry by --registry");
  const failures = failuresOf(packages, modules, leaks, options.allowVacMajor ?? false);
  return { against: baseline.label, packages, modules, leaks, failures, notes };
}

async function differences(
  workspace: Workspace,
  item: WorkspacePackage,
  before: BaselinePackage,
  others: OtherPackages,
  trees: Map<string, SourceTree>,
): Promise<Finding[]> {
  const manifest = before.built ? publishedManifest(workspace, item.manifest) : item.manifest;
  const after = { report: await packageReport(item), manifest };
  const findings = comparePackages(before, after, others);
  let changed: readonly string[] = [];
  if (before.built) changed = await outputChangeFromBuilt(item, before.built);
  else if (before.commit) {
    const tree = trees.get(before.commit) ?? (await sourcesAt(workspace, before.commit));
    trees.set(before.commit, tree);
    changed = await outputChangeFromSources(workspace, item, tree);
  }
  if (changed.length > 0) findings.push(outputFinding(item, changed));
  return findings;
}

function outputFinding(item: WorkspacePackage, changed: readonly string[]): Finding {
  const bundled = changed.filter((path) => !path.startsWith(`${item.path}/`));
  const named = (bundled.length > 0 ? bundled : changed).slice(0, 3).join(", ");
  const more = changed.length > 3 ? ` and ${changed.length - 3} more` : "";
  return finding(item.name, "built-output-changed", "built output", `${named}${more}`);
}

function newPackage(item: WorkspacePackage): Finding {
  return finding(item.name, "package-added", item.name, `- -> ${item.manifest.version}`);
}

function gonePackage(name: string, version: string): PackageVerdict {
  const findings = [finding(name, "package-removed", name, `${version} -> -`)];
  return { package: name, from: version, to: "-", class: "major", needs: "none", has: "none", enough: true, findings };
}

function finding(name: string, rule: Parameters<typeof ruleOf>[0], subject: string, detail: string): Finding {
  return { package: name, rule, class: ruleOf(rule).class, subject, detail };
}

function verdict(
  name: string,
  from: string | undefined,
  planned: ReadonlyMap<string, PlannedVersion>,
  findings: readonly Finding[],
): PackageVerdict {
  const to = planned.get(name)!.version;
  const reach = classOf(findings);
  const common = { package: name, to, findings, ...(reach ? { class: reach } : {}) };
  // The first version of a package may be any
  if (from === undefined) return { ...common, needs: "none", has: "none", enough: true };
  const [needs, has] = [neededBump(reach, from), bumpBetween(from, to)];
  return { ...common, from, needs, has, enough: isEnough(has, needs) };
}

function failuresOf(
  packages: readonly PackageVerdict[],
  modules: readonly ModuleVerdict[],
  leaks: readonly Leak[],
  allowVacMajor: boolean,
): string[] {
  const failures: string[] = [];
  for (const { package: name, from, to, class: reach, needs, has, enough, findings } of packages) {
    if (appendOnly.includes(name) && reach === "major" && !allowVacMajor) {
      const rules = [...new Set(findings.filter((each) => each.class === "major").map(({ rule }) => rule))].join(", ");
      failures.push(
        `${name} is append-only and this breaks it (${rules}): every loaded module works over the one VAC that runs, and it is never upgraded live; append instead, or give --allow-vac-major`,
      );
    }
    if (!enough)
      failures.push(
        `${name} needs a ${needs} bump after ${from} and the pending changesets give ${has === "none" ? "none" : `a ${has} one (${to})`}: add a changeset with "${name}": ${needs}`,
      );
  }
  for (const module of modules)
    if (module.brokenUnannounced)
      failures.push(`${module.package} ${module.version} breaks, and no range of it says so: ${module.trial!.detail}`);
  failures.push(...leaks.map(({ message }) => message));
  return failures;
}
