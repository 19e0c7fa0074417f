import type { Command } from "commander";
import { parseParameterWords } from "../loader/parameters.ts";
import { connectDaemon, type DaemonClient } from "./client.ts";
import { devicesTable, modulesTable, moduleText, silenceText } from "./tables.ts";

/** Asks the daemon, and lets it go. */
export async function ask<Result>(question: (daemon: DaemonClient) => Promise<Result>): Promise<Result> {
  const daemon = await connectDaemon();
  try {
    return await question(daemon);
  } finally {
    daemon.close();
  }
}

/** The same of a list. What is on a CPU that does not answer is in none, which is said for each. */
export function askList<Result>(question: (daemon: DaemonClient) => Promise<Result>): Promise<Result> {
  return ask(async (daemon) => {
    try {
      return await question(daemon);
    } finally {
      for (const { cpu, state, pids } of await daemon.call("cpus"))
        if (state === "silent") process.stderr.write(`mkvm: ${silenceText(cpu, pids)}\n`);
    }
  });
}

export function print(value: unknown, json: boolean | undefined, text: () => string): void {
  console.log(json ? JSON.stringify(value, null, 2) : text());
}

interface Json {
  json?: boolean;
}

export function addModuleCommands(program: Command): void {
  const directory = process.cwd();
  program
    .command("insmod <package> [parameters...]")
    .summary("load a module")
    .description(
      "Loads a KVM module: a package by its name, or by a path that begins with './' or '/'. Parameters are name=value.",
    )
    .option("--id <id>", "name it kvm<id> and /dev/kvm<id>, instead of the package's own id")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  mkvm insmod @mkvm/kvm-v1\n  mkvm insmod @mkvm/kvm-v2 --id test halt_poll_ns=0\n  mkvm insmod ./my-kvm",
    )
    .action(async (spec: string, words: string[], flags: { id?: string } & Json) => {
      const options = {
        directory,
        parameters: parseParameterWords(words),
        ...(flags.id === undefined ? {} : { id: flags.id }),
      };
      const module = await ask((daemon) => daemon.call("insmod", spec, options));
      print(module, flags.json, () => `${module.name} from ${module.package} ${module.version}, ${module.devices.join(" ")}`);
    });
  program
    .command("rmmod <module>")
    .summary("unload a module")
    .description("Unloads a module that nobody uses.")
    .option("--when-idle", "let nobody else begin to use it, and unload it when the last user is gone")
    .option("--keep", "take --when-idle back")
    .addHelpText("after", "\nExamples:\n  mkvm rmmod kvm1\n  mkvm rmmod kvm1 --when-idle")
    .action(async (name: string, flags: { whenIdle?: boolean; keep?: boolean }) => {
      if (flags.keep) return ask((daemon) => daemon.call("keep", name));
      const unloaded = await ask((daemon) => daemon.call("rmmod", name, { whenIdle: flags.whenIdle ?? false }));
      if (!unloaded) console.log(`${name} is in use: it is unloaded when the last user is gone, see 'mkvm lsmod'`);
    });
  program
    .command("lsmod")
    .summary("list loaded modules")
    .description("Lists loaded modules and who uses them.")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm lsmod --json")
    .action(async (flags: Json) => {
      const modules = await askList((daemon) => daemon.call("lsmod"));
      print(modules, flags.json, () => modulesTable(modules));
    });
  program
    .command("modinfo <module>")
    .summary("show what a module is and takes")
    .description("Shows a package's version, requirements and parameters, or those of a loaded module.")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExamples:\n  mkvm modinfo @mkvm/kvm-v2\n  mkvm modinfo kvm1 --json")
    .action(async (spec: string, flags: Json) => {
      const info = await ask((daemon) => daemon.call("modinfo", spec, { directory }));
      print(info, flags.json, () => moduleText(info));
    });
}

export function addDeviceCommands(program: Command): void {
  program
    .command("ls [path]")
    .summary("list /dev")
    .description("Lists device nodes, links and mounts under /dev.")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm ls")
    .action(async (path: string | undefined, flags: Json) => {
      const entries = await ask((daemon) => daemon.call("ls", path ?? "/dev"));
      print(entries, flags.json, () => devicesTable(entries));
    });
  program
    .command("ln <target> [link]")
    .summary("link one device path to another")
    .description(
      "Makes a link under /dev, replacing a link of that name in one step: VMs that start from then on use the target.",
    )
    .option("--remove", "remove the link <target> instead")
    .addHelpText("after", "\nExamples:\n  mkvm ln /dev/kvm2 /dev/kvm\n  mkvm ln --remove /dev/kvm")
    .action(async (target: string, path: string | undefined, flags: { remove?: boolean }) => {
      await ask((daemon) => (flags.remove ? daemon.call("unlink", target) : daemon.call("ln", target, path ?? "/dev/kvm")));
    });
  program
    .command("mount <source> [target]")
    .summary("show one device at another path")
    .description(
      "Bind-mounts a device: for processes that start from then on, or with --pid in the namespace of one that runs.",
    )
    .option("--pid <pid>", "in this process's namespace only", Number)
    .option("--remove", "remove the mount at <source> instead")
    .addHelpText(
      "after",
      "\nExamples:\n  mkvm mount /dev/kvm2 /dev/kvm\n  mkvm mount /dev/kvm2 /dev/kvm --pid 3\n  mkvm mount --remove /dev/kvm",
    )
    .action(async (source: string, target: string | undefined, flags: { pid?: number; remove?: boolean }) => {
      const options = flags.pid === undefined ? {} : { pid: flags.pid };
      await ask((daemon) =>
        flags.remove ? daemon.call("umount", source) : daemon.call("mount", source, target ?? "/dev/kvm", options),
      );
    });
}
