/** Where results go: a table on standard output, and files. */
import { accessSync, constants, statSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { Command } from "commander";
import { AbError, ExitStatus, messageOf } from "../errors.ts";
import type { Result } from "../report/result.ts";
import { resultText } from "../report/table.ts";

export interface ReportFlags {
  json?: string;
  junit?: string;
  html?: string;
  all?: boolean;
  quiet?: boolean;
}

export function addReportOptions(command: Command): Command {
  return command
    .option("--json <file>", "write the result as JSON; - for standard output, instead of the table")
    .option("--junit <file>", "write JUnit XML for CI")
    .option("--html <file>", "write one page with plots")
    .option("--all", "show metrics without a threshold too")
    .option("--quiet", "no progress, no table");
}

/** Before the long work: a report that cannot be written is said now. @throws AbError */
export function checkReportFlags(flags: ReportFlags): void {
  for (const [option, path] of reportFiles(flags)) {
    try {
      accessSync(dirname(resolve(path)), constants.W_OK);
      if (statSync(resolve(path), { throwIfNoEntry: false })?.isDirectory()) throw new Error("it is a folder");
    } catch (thrown) {
      const why = (thrown as NodeJS.ErrnoException).code === "ENOENT" ? "its folder does not exist" : messageOf(thrown);
      throw new AbError(ExitStatus.cannotWrite, `--${option} ${path} cannot be written: ${why}`);
    }
  }
}

export async function writeReports(result: Result, flags: ReportFlags): Promise<void> {
  const json = () => `${JSON.stringify(result, null, 2)}\n`;
  if (flags.json === "-") process.stdout.write(json());
  else if (!flags.quiet) console.log(resultText(result, { all: flags.all ?? false, color: process.stdout.isTTY === true }));
  for (const [option, path] of reportFiles(flags)) {
    // What only one report needs is loaded for it.
    const text =
      option === "json"
        ? json()
        : option === "junit"
          ? (await import("../report/junit.ts")).junitXml(result)
          : await (await import("../report/html.ts")).htmlPage(result);
    try {
      writeFileSync(path, text);
    } catch (thrown) {
      throw new AbError(ExitStatus.cannotWrite, `--${option} ${path} cannot be written: ${messageOf(thrown)}`);
    }
  }
}

function reportFiles(flags: ReportFlags): ["json" | "junit" | "html", string][] {
  return (["json", "junit", "html"] as const).flatMap((option) => {
    const path = flags[option];
    return path === undefined || path === "-" ? [] : [[option, path] as ["json" | "junit" | "html", string]];
  });
}
