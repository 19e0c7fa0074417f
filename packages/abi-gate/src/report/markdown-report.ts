/** The API report that people review, as API Extractor writes it from the same built declarations. */
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Extractor, ExtractorConfig, ExtractorLogLevel } from "@microsoft/api-extractor";
import { builtFile, unscoped, type WorkspacePackage } from "../workspace.ts";

/** Writes `etc/NAME.api.md`, or only compares it. True when it was, or is, what the package exports. */
export function markdownReport(item: WorkspacePackage, write: boolean): boolean {
  const { directory: projectFolder, name } = item;
  mkdirSync(join(projectFolder, "etc"), { recursive: true });
  // Not in dist, which is published
  const work = mkdtempSync(join(tmpdir(), "mkvm-api-"));
  const silent = { default: { logLevel: ExtractorLogLevel.None } };
  const types = builtFile(item, "types");
  const tsconfig = join(projectFolder, "tsconfig.json");
  const config = ExtractorConfig.prepare({
    configObject: {
      projectFolder,
      mainEntryPointFilePath: types,
      compiler: existsSync(tsconfig) ? { tsconfigFilePath: tsconfig } : { overrideTsconfig: plainConfiguration(types) },
      apiReport: {
        enabled: true,
        reportFolder: join(projectFolder, "etc"),
        reportTempFolder: work,
        reportFileName: `${unscoped(name)}.api.md`,
      },
      newlineKind: "lf",
      docModel: { enabled: false },
      dtsRollup: { enabled: false },
      tsdocMetadata: { enabled: false },
      messages: { compilerMessageReporting: silent, extractorMessageReporting: silent, tsdocMessageReporting: silent },
    },
    configObjectFullPath: undefined,
    packageJsonFullPath: join(projectFolder, "package.json"),
  });
  const result = Extractor.invoke(config, {
    localBuild: write,
    showVerboseMessages: false,
    messageCallback: (message) => {
      message.handled = true;
    },
  });
  rmSync(work, { recursive: true });
  return !result.apiReportChanged;
}

/** For packages that are written in JavaScript, with declarations beside it. */
function plainConfiguration(types: string): object {
  return {
    compilerOptions: { target: "es2024", module: "nodenext", strict: true, skipLibCheck: true, types: [] },
    files: [types],
  };
}
