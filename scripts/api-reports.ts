/**
 * The API report of each published package, in its `etc/`: what it exports, as API Extractor writes it. Without arguments compares
 * with what is committed and fails when they differ; with --update writes them.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Extractor, ExtractorConfig, ExtractorLogLevel } from "@microsoft/api-extractor";

const update = process.argv.includes("--update");
const packages = resolve(import.meta.dirname, "..", "packages");
const published = readdirSync(packages).filter(
  (name) => !JSON.parse(readFileSync(join(packages, name, "package.json"), "utf8")).private,
);
const work = mkdtempSync(join(tmpdir(), "mkvm-api-"));
let failed = 0;

for (const name of published) {
  const projectFolder = join(packages, name);
  mkdirSync(join(projectFolder, "etc"), { recursive: true });
  const config = ExtractorConfig.prepare({
    configObject: {
      projectFolder,
      mainEntryPointFilePath: join(projectFolder, "dist", "index.d.ts"),
      compiler: { tsconfigFilePath: join(projectFolder, "tsconfig.json") },
      apiReport: {
        enabled: true,
        reportFolder: join(projectFolder, "etc"),
        // Not in dist, which is published.
        reportTempFolder: work,
        reportFileName: `${name}.api.md`,
      },
      newlineKind: "lf",
      docModel: { enabled: false },
      dtsRollup: { enabled: false },
      tsdocMetadata: { enabled: false },
      messages: {
        compilerMessageReporting: { default: { logLevel: ExtractorLogLevel.None } },
        extractorMessageReporting: { default: { logLevel: ExtractorLogLevel.None } },
        tsdocMessageReporting: { default: { logLevel: ExtractorLogLevel.None } },
      },
    },
    configObjectFullPath: undefined,
    packageJsonFullPath: join(projectFolder, "package.json"),
  });
  const result = Extractor.invoke(config, {
    localBuild: update,
    showVerboseMessages: false,
    messageCallback: (message) => {
      message.handled = true;
    },
  });
  if (result.apiReportChanged && !update) {
    console.log(
      `the exports of @mkvm/${name} differ from etc/${name}.api.md: look at the difference, then run pnpm api-reports`,
    );
    failed++;
  }
}
rmSync(work, { recursive: true });
process.exitCode = failed ? 1 : 0;
