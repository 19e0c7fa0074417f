/** `mkvm abi`: what @mkvm/host hands the words behind it to. */
import { Command, CommanderError } from "commander";
import { type CheckOptions, check } from "../check.ts";
import { messageOf } from "../errors.ts";
import { workspaceReports } from "../report/workspace-reports.ts";
import { rulesPage, ruleText } from "../rules/rules-page.ts";
import { findWorkspace } from "../workspace.ts";
import { checkText } from "./tables.ts";

interface CheckFlags {
  against: string;
  modules?: string[];
  registry?: string;
  allowVacMajor?: boolean;
  allowNoRelease?: boolean;
  json?: boolean;
}

/** Runs one command line; the status to exit with: 0, 1 for a refusal or a release that may not go out, 2 for wrong words. */
export async function runCommandLine(words: readonly string[]): Promise<number> {
  let status = 0;
  const directory = process.cwd();
  const program = new Command("mkvm abi")
    .description("Reports what packages promise, and checks that a release's versions say how far it changes that.")
    .exitOverride()
    .showHelpAfterError("(see 'mkvm abi --help')")
    .addHelpText(
      "after",
      "\nExamples:\n  mkvm abi report\n  mkvm abi check --against main\n  mkvm abi check --against @mkvm/kvm-abi@1.2.0 --json",
    );
  program
    .command("report")
    .summary("write the reports of all packages")
    .description(
      "Writes etc/NAME.api.md (to review) and etc/NAME.abi.json (to compare) of each published package from what is built.",
    )
    .option("--check", "write nothing; fail when a report differs from what is built")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExamples:\n  mkvm abi report\n  mkvm abi report --check")
    .action(async (flags: { check?: boolean; json?: boolean }) => {
      const results = await workspaceReports(await findWorkspace(directory), { check: flags.check ?? false });
      const changed = results.flatMap(({ files }) => files).filter((file) => file.changed);
      if (flags.json) console.log(JSON.stringify(results, null, 2));
      else if (flags.check)
        for (const { path } of changed)
          console.log(`${path} differs from what is built: look at the difference of 'mkvm abi report'`);
      else
        console.log(
          changed.length > 0 ? changed.map(({ path }) => `wrote ${path}`).join("\n") : "all reports are as they were",
        );
      if (flags.check && changed.length > 0) status = 1;
    });
  program
    .command("check")
    .summary("compare with a published version or a git ref")
    .description(
      "Classifies every difference as major, minor or patch by a named rule (docs/abi-rules.md), and fails when the pending changesets raise a version by less.",
    )
    .requiredOption("--against <version or ref>", "1.2.0, @mkvm/vac@1.2.0, a git ref, or last-release (by its tags)")
    .option("--modules <path...>", "published modules to load against what is built: tarballs or folders")
    .option("--registry <url>", "registry of published versions, whose modules are tried as well (default: npm's)")
    .option("--allow-vac-major", "let an incompatible change of @mkvm/vac pass")
    .option("--allow-no-release", "with last-release: pass when nothing was released yet")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  mkvm abi check --against main\n  mkvm abi check --against 1.2.0 --registry http://localhost:4873/\n  mkvm abi check --against HEAD~3 --modules kvm-v1-1.0.0.tgz",
    )
    .action(async (flags: CheckFlags) => {
      const options: CheckOptions = { directory, ...flags };
      const result = await check(options);
      console.log(flags.json ? JSON.stringify(result, null, 2) : checkText(result));
      if (result.failures.length > 0) status = 1;
    });
  program
    .command("rules [rule]")
    .summary("show the rules, or one of them")
    .description("Prints all rules as Markdown (docs/abi-rules.md), or what one of them says.")
    .addHelpText("after", "\nExamples:\n  mkvm abi rules\n  mkvm abi rules member-added-required")
    .action((rule: string | undefined) => {
      process.stdout.write(rule === undefined ? rulesPage() : `${ruleText(rule)}\n`);
    });
  try {
    await program.parseAsync([...words], { from: "user" });
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : 2;
    process.stderr.write(`mkvm abi: ${messageOf(thrown)}\n`);
    return 1;
  }
  return status;
}
