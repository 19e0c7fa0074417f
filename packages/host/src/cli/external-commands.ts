/**
 * Commands that live in packages of their own, because what they need (statistics, plots, compilers) is nothing that a host
 * must carry. Such a package exports `runCommandLine`; it is looked for where modules are: in the user's project first.
 */
import type { Command } from "commander";
import { HostError, messageOf } from "../errors.ts";
import { findPackage, hostDirectory, packageDirectory } from "../loader/package-files.ts";

/** Runs the words after the command's name; resolves with the status to exit with. Prints its own refusals. */
export type RunCommandLine = (words: readonly string[]) => Promise<number>;

interface ExternalCommand {
  name: string;
  package: string;
  summary: string;
}

const externalCommands: readonly ExternalCommand[] = [
  { name: "ab", package: "@mkvm/ab", summary: "compare two modules under a workload" },
  { name: "abi", package: "@mkvm/abi-gate", summary: "report the ABI of packages, and check changes of it" },
];

/** As shells say that a command is not there: no status that the command itself has a meaning for. */
const notFoundStatus = 127;

/** Names them in the help; they never run from there, because their words are theirs to read. */
export function listExternalCommands(program: Command): void {
  for (const { name, summary, package: spec } of externalCommands) program.command(name).summary(`${summary} (${spec})`);
}

/**
 * The status of an external command, or undefined when `words` begin with none. `places`: where its package is looked for.
 * @throws HostError when its package is there and cannot be used
 */
export async function runExternalCommand(
  words: readonly string[],
  places: readonly string[] = [process.cwd(), hostDirectory],
): Promise<number | undefined> {
  const [first, ...rest] = words[0] === "help" && words.length > 1 ? [words[1], "--help"] : words;
  const command = externalCommands.find(({ name }) => name === first);
  if (!command) return undefined;
  if (packageDirectory(command.package, places) === undefined) {
    process.stderr.write(`mkvm ${command.name} needs the package ${command.package}: pnpm add -D ${command.package}\n`);
    return notFoundStatus;
  }
  const { name, version, entryUrl } = findPackage(command.package, places);
  let namespace: { runCommandLine?: unknown };
  try {
    namespace = await import(entryUrl);
  } catch (thrown) {
    throw new HostError("EIO", `${name} ${version} cannot be imported: ${messageOf(thrown)}`);
  }
  if (typeof namespace.runCommandLine !== "function") {
    throw new HostError("EINVAL", `${name} ${version} has no command line for this mkvm: update it and @mkvm/host together`);
  }
  return (namespace.runCommandLine as RunCommandLine)(rest);
}
