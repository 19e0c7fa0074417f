/** The `mkvm ab` command. */
import { Command, CommanderError } from "commander";
import { AbError, ExitStatus, messageOf } from "../errors.ts";
import { addLiveCommand } from "./live-command.ts";
import { addRunCommand } from "./run-command.ts";

/** EX_SOFTWARE of sysexits.h. */
const internalError = 70;

/** Runs one command line, without "mkvm ab"; the status to exit with. */
export async function runCommandLine(words: readonly string[]): Promise<number> {
  let status = 0;
  const program = new Command("mkvm ab")
    .description("A/B tests of KVM modules: what a workload takes on one, and on the other.")
    .exitOverride()
    .showHelpAfterError("(see 'mkvm ab --help')");
  const done = (result: number) => {
    status = result;
  };
  addRunCommand(program, done);
  addLiveCommand(program, done);
  try {
    await program.parseAsync([...words], { from: "user" });
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : ExitStatus.usage;
    process.stderr.write(`mkvm ab: ${messageOf(thrown)}\n`);
    return thrown instanceof AbError ? thrown.status : internalError;
  }
  return status;
}
