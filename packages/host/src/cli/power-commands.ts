/** Power of the machine's CPUs: `mkvm suspend`, `resume`, and `mkvm cpu`. */
import type { Command } from "commander";
import { HostError } from "../errors.ts";
import { ask, print } from "./module-commands.ts";
import { cpusTable } from "./tables.ts";

export function addPowerCommands(program: Command): void {
  addSleepCommands(program);
  addCpuCommands(program);
}

function addSleepCommands(program: Command): void {
  program
    .command("suspend")
    .summary("suspend the machine to RAM")
    .description(
      "Suspends the daemon's machine: VMs stand still, virtualization goes off on every CPU, and the CPUs lose power. 'mkvm resume' wakes it.",
    )
    .addHelpText("after", "\nExample:\n  mkvm suspend && sleep 10 && mkvm resume")
    .action(() => ask((daemon) => daemon.call("suspend")));
  program
    .command("resume")
    .summary("wake the machine")
    .description("Wakes a machine that is suspended: its VMs go on where they stood, on the modules that they were on.")
    .addHelpText("after", "\nExample:\n  mkvm resume")
    .action(() => ask((daemon) => daemon.call("resume")));
}

function addCpuCommands(program: Command): void {
  const cpu = program
    .command("cpu")
    .summary("take logical CPUs out of use, and back")
    .description(
      "Lists the logical CPUs of the daemon's machine, takes them out of use under VMs that run, and brings them back.",
    )
    .addHelpText("after", "\nExamples:\n  mkvm cpu list\n  mkvm cpu offline 1\n  mkvm cpu online 1");
  cpu
    .command("list")
    .summary("list logical CPUs")
    .description("Lists the machine's logical CPUs and the processes on them.")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm cpu list")
    .action(async (flags: { json?: boolean }) => {
      const cpus = await ask((daemon) => daemon.call("cpus"));
      print(cpus, flags.json, () => cpusTable(cpus));
    });
  cpu
    .command("offline <number>")
    .summary("take a CPU out of use")
    .description("Takes a CPU out of use: its VMs move to the others while they run. What cannot leave keeps it online.")
    .addHelpText("after", "\nExample:\n  mkvm cpu offline 1")
    .action((text: string) => ask((daemon) => daemon.call("offline", cpuOf(text))));
  cpu
    .command("online <number>")
    .summary("bring a CPU back into use")
    .description("Brings a CPU back into use.")
    .addHelpText("after", "\nExample:\n  mkvm cpu online 1")
    .action((text: string) => ask((daemon) => daemon.call("online", cpuOf(text))));
  cpu
    .command("kill <number>")
    .summary("end a CPU that hangs")
    .description("Ends a CPU's thread, also one that does not answer, with the processes on it. It does not come back.")
    .addHelpText("after", "\nExample:\n  mkvm cpu kill 1")
    .action((text: string) => ask((daemon) => daemon.call("killCpu", cpuOf(text))));
}

/** A logical CPU by its number. @throws HostError for what is none */
export function cpuOf(text: string): number {
  if (!/^\d+$/.test(text)) throw new HostError("EINVAL", `'${text}' is no CPU: give its number, see 'mkvm cpu list'`);
  return Number(text);
}
