/** What the workspace is compared with. */
import type { Manifest } from "../compare/compare-manifests.ts";
import type { PackageReport } from "../report/schema.ts";

export interface BaselinePackage {
  readonly manifest: Manifest;
  readonly report: PackageReport;
  /** Built code of a published version, by path within the package ("dist/index.js"); undefined for a git ref, which has sources. */
  readonly built?: ReadonlyMap<string, string>;
  /** Commit that has the sources. */
  readonly commit?: string;
}

export interface Baseline {
  /** "@mkvm/vac@1.2.0", "git ref main (3f2a91c)". */
  readonly label: string;
  /** Packages in it, by name. */
  readonly packages: ReadonlyMap<string, BaselinePackage>;
  /** Only these packages of the workspace are compared; all when undefined. */
  readonly only?: readonly string[];
}
