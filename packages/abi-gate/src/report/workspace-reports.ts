/** Reports of all published packages, in their `etc/` folders. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { reportPath, unscoped, type Workspace } from "../workspace.ts";
import { markdownReport } from "./markdown-report.ts";
import { packageReport } from "./package-report.ts";
import { reportText } from "./schema.ts";

export interface ReportResult {
  readonly package: string;
  /** Path of each report from the workspace's root, and whether it differed from what is built. */
  readonly files: readonly { readonly path: string; readonly changed: boolean }[];
}

/** Writes the reports that differ from what is built; with `check` only says which do. All are made before the first is written. */
export async function workspaceReports(workspace: Workspace, options: { check: boolean }): Promise<ReportResult[]> {
  const texts = new Map<string, string>();
  for (const item of workspace.published) texts.set(item.name, reportText(await packageReport(item)));
  return workspace.published.map((item) => {
    const path = join(item.directory, reportPath(item.name));
    const text = texts.get(item.name)!;
    const changed = !existsSync(path) || readFileSync(path, "utf8") !== text;
    if (changed && !options.check) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, text);
    }
    const reviewed = markdownReport(item, !options.check);
    return {
      package: item.name,
      files: [
        { path: `${item.path}/${reportPath(item.name)}`, changed },
        { path: `${item.path}/etc/${unscoped(item.name)}.api.md`, changed: !reviewed },
      ],
    };
  });
}
