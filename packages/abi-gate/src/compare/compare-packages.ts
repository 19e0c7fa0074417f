/** All differences between two versions of one package. */
import type { PackageReport } from "../report/schema.ts";
import type { Finding } from "../rules/rule.ts";
import { Findings } from "../rules/rule-table.ts";
import { compareApi } from "./compare-api.ts";
import { compareBinary } from "./compare-binary.ts";
import { compareManifests, type Manifest } from "./compare-manifests.ts";
import type { OtherPackages } from "./type-program.ts";

export interface PackageState {
  readonly report: PackageReport;
  readonly manifest: Manifest;
}

/** Classifies each difference. `others`: declarations of packages that today's ones import, by name. */
export function comparePackages(before: PackageState, after: PackageState, others: OtherPackages = new Map()): Finding[] {
  const findings = new Findings(after.report.package);
  compareManifests(before.manifest, after.manifest, findings);
  const [old, now] = [before.report, after.report];
  compareApi(old.api, now.api, { others, covered: coveredConstants(old, now) }, findings);
  if (old.binary && now.binary) {
    const names = (report: PackageReport) => report.api.exports.map(({ name }) => name);
    const changedExports = new Set([
      ...names(old).filter((name) => !names(now).includes(name)),
      ...names(now).filter((name) => !names(old).includes(name)),
    ]);
    compareBinary(old.binary, now.binary, { changedExports }, findings);
  }
  return findings.all;
}

/** Constants that both binary surfaces hold as layouts, sections or numbers: those say more than their types do. */
function coveredConstants(old: PackageReport, now: PackageReport): Set<string> {
  const of = ({ binary, api }: PackageReport): Set<string> => {
    if (!binary) return new Set();
    const names = new Set<string>(["Ioctl", "ABI_FEATURE_LEVEL"]);
    for (const name of Object.keys(binary.constants)) names.add(name.split(".")[0]!);
    for (const { exportedAs } of binary.structs) if (exportedAs) names.add(exportedAs);
    for (const { versionExportedAs } of binary.sharedMemory) if (versionExportedAs) names.add(versionExportedAs);
    const layoutTypes = /^const \w+: (SectionLayout<|readonly \[(SectionLayout<|[^;]*SectionLayout<))/;
    for (const { name, text } of api.declarations) if (layoutTypes.test(text.join(" "))) names.add(name);
    return names;
  };
  const after = of(now);
  return new Set([...of(old)].filter((name) => after.has(name)));
}
