/** The `mkvm` command. */
import { Command, CommanderError, Option } from "commander";
import { messageOf } from "../errors.ts";
import { addDaemonCommands } from "./daemon-commands.ts";
import { listExternalCommands, runExternalCommand } from "./external-commands.ts";
import { addDeviceCommands, addModuleCommands } from "./module-commands.ts";
import { addPowerCommands } from "./power-commands.ts";
import { addProcessCommands } from "./process-commands.ts";
import { addRolloutCommand } from "./rollout-command.ts";
import { linuxCommandLine, type RunFlags, runVm } from "./run.ts";
import { addSavedCommands } from "./saved-commands.ts";
import { addStatCommand } from "./stat-command.ts";
import { hostVersion } from "./version.ts";

/** Runs one command line; the status to exit with. */
export async function runCommandLine(words: readonly string[]): Promise<number> {
  let status = 0;
  const program = new Command("mkvm")
    .description("Several KVM modules on one host: load, run, and move VMs between them while they run.")
    .version(hostVersion())
    .exitOverride()
    .showHelpAfterError("(see 'mkvm help')")
    .addHelpText(
      "after",
      `
Examples:
  mkvm run --kernel bzImage --initrd initrd.gz         a VM without a daemon
  mkvm up                                              start the daemon
  mkvm insmod @mkvm/kvm-v1 && mkvm ln /dev/kvm1 /dev/kvm
  mkvm run --kernel bzImage --detach                   a VM in it
  mkvm insmod @mkvm/kvm-v2 && mkvm upgrade 1 --to kvm2
  mkvm rollback 1
  mkvm stat 1 --watch 1                                what its exits are, every second`,
    );
  const done = (result: number) => {
    status = result;
  };
  addDaemonCommands(program);
  addPowerCommands(program);
  addModuleCommands(program);
  addDeviceCommands(program);
  addProcessCommands(program, done);
  addSavedCommands(program, done);
  addStatCommand(program);
  addRolloutCommand(program, done);
  addRunCommand(program, done);
  listExternalCommands(program);
  try {
    const external = await runExternalCommand(words);
    if (external !== undefined) return external;
    await program.parseAsync([...words], { from: "user" });
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode;
    process.stderr.write(`mkvm: ${messageOf(thrown)}\n`);
    return 1;
  }
  return status;
}

function addRunCommand(program: Command, done: (status: number) => void): void {
  program
    .command("run")
    .summary("start a VM")
    .description("Starts a VM: in the daemon when one runs, else on a host of its own that ends with it.")
    .option("--kernel <image>", "bzImage, vmlinux, multiboot or flat image")
    .option("--pflash <file...>", "UEFI firmware in place of a kernel: its code, then the file that keeps its variables")
    .option("--initrd <file>", "initial RAM file system")
    .option("--append <text>", `kernel command line (default for a bzImage: "${linuxCommandLine}")`)
    .option("--cpus <number>", "number of vCPUs (default: 1)")
    .option("--cpu <model>", "what they can do: x86-64-v1, x86-64-v2, x86-64-v3, or max, all that KVM has (default: max)")
    .addOption(
      new Option("--format <kind>", "raw code or firmware, which no header tells: what to load it as").choices([
        "flat16",
        "flat32",
        "flat64",
        "firmware",
      ]),
    )
    .option("--digest", "at the end, print digests of memory and registers")
    .option("--memory <size>", "RAM of the guest", "256M")
    .option("--device <path>", "device that the VMM opens", "/dev/kvm")
    .option("--module <package>", "without the daemon: module to load (default @mkvm/kvm-v1)")
    .option("--param <name=value...>", "without the daemon: parameter of the module")
    .addOption(
      new Option("--clock <kind>", "without the daemon: real time, or instructions counted").choices(["wall", "icount"]),
    )
    .addOption(
      new Option("--vendor <name>", "without the daemon: the machine's processors (default: intel)").choices(["intel", "amd"]),
    )
    .addOption(
      new Option("--engine <mode>", "without the daemon: what is translated (default: MKVM_ENGINE, else hot)").choices([
        "off",
        "hot",
        "always",
      ]),
    )
    .option("--engine-stats", "at the end, print what was translated, VM exits, and where time went; samples meanwhile")
    .option("--one-shot", "without the daemon, even when one runs")
    .option("--program <package>", "VMM to run", "@mkvm/vmm")
    .option("--logical-cpu <number>", "in the daemon: logical CPU")
    .option("--mount <source:target...>", "bind mount in the VMM's namespace")
    .option("--name <name>", "name of the process")
    .option("-d, --detach", "in the daemon: print the pid and return")
    .option("--json", "with --detach or --engine-stats: print JSON")
    .argument("[arguments...]", "more arguments for the VMM, after --")
    .addHelpText(
      "after",
      `
The exit status is the VM's: 0 after a power-off, (v << 1) | 1 after a write of v to the debug-exit port 0xf4.
Ctrl-] ends it on a terminal, Ctrl-C otherwise. With --engine-stats, SIGUSR2 prints the figures so far; they go to standard error.

Examples:
  mkvm run --kernel bzImage --initrd initrd.gz --append "console=ttyS0 panic=-1 quiet" --memory 512M
  mkvm run --kernel test.elf --module @mkvm/kvm-v2 --clock icount
  mkvm run --pflash OVMF_CODE_4M.fd --pflash variables.fd
  mkvm run --kernel bzImage --initrd initrd.gz --engine-stats --json 2> engine.json
  mkvm run --kernel bzImage --mount /dev/kvm2:/dev/kvm --detach`,
    )
    .action(async (words: string[], flags: RunFlags) => done(await runVm(flags, words)));
}
