/** `mkvm save` and `mkvm restore`. */
import { resolve } from "node:path";
import type { Command } from "commander";
import type { RestoreOptions, SavedProcess } from "../control/types.ts";
import { connectDaemon } from "./client.ts";
import { ask, print } from "./module-commands.ts";
import { cpuOf } from "./power-commands.ts";
import { pidOf } from "./process-commands.ts";
import { attachTo } from "./run.ts";

interface RestoreFlags {
  module?: string;
  logicalCpu?: string;
  detach?: boolean;
  json?: boolean;
}

export function addSavedCommands(program: Command, done: (status: number) => void): void {
  program
    .command("save <pid> <file>")
    .summary("write a running VM to a file")
    .description(
      "Writes a process with its VMs to a file: their state in portable form, the VMM's own, and memory that is not zero. The VM stands still meanwhile, and runs on.",
    )
    .option("--stop", "end the process when it is saved")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExamples:\n  mkvm save 1 vm.saved\n  mkvm save 1 vm.saved --stop")
    .action(async (pid: string, file: string, flags: { stop?: boolean; json?: boolean }) => {
      const options = { pid: pidOf(pid), path: resolve(file), stop: flags.stop ?? false };
      const saved = await ask((daemon) => daemon.call("save", options));
      print(saved, flags.json, () => savedText(saved));
    });
  program
    .command("restore <file>")
    .summary("go on with a saved VM")
    .description(
      "Starts a process that goes on where 'mkvm save' found it, on any loaded module that knows its state. A damaged file is refused.",
    )
    .option("--module <name>", "loaded module; default the one behind the device that the VMM had opened")
    .option("--logical-cpu <n>", "logical CPU; default the one with the fewest processes")
    .option("-d, --detach", "print the pid and return")
    .option("--json", "with --detach, print JSON")
    .addHelpText("after", "\nExamples:\n  mkvm restore vm.saved\n  mkvm restore vm.saved --module kvm2 --detach")
    .action(async (file: string, flags: RestoreFlags) => {
      const daemon = await connectDaemon();
      try {
        const { pid, name, cpu } = await daemon.call("restoreVm", restoreOptions(file, flags));
        if (!flags.detach) done(await attachTo(daemon, pid, () => daemon.call("kill", pid).then(() => undefined)));
        else console.log(flags.json ? JSON.stringify({ pid, name, cpu }) : `${pid}`);
      } finally {
        daemon.close();
      }
    });
}

function restoreOptions(file: string, flags: RestoreFlags): RestoreOptions {
  const options: RestoreOptions = { path: resolve(file), directory: process.cwd() };
  if (flags.module !== undefined) options.module = flags.module;
  return flags.logicalCpu === undefined ? options : { ...options, cpu: cpuOf(flags.logicalCpu) };
}

function savedText({ pid, path, bytes, memoryBytes, stillUs }: SavedProcess): string {
  const mib = (size: number) => (size / 2 ** 20).toFixed(1);
  return `process ${pid} is in ${path}: ${mib(bytes)} MiB, of ${mib(memoryBytes)} MiB of memory; it stood still for ${Math.round(stillUs / 1000)} ms`;
}
