import type { Command } from "commander";
import type { MoveReport, UpgradeOptions } from "../control/types.ts";
import { HostError } from "../errors.ts";
import { formatLogEntry } from "../log/kernel-log.ts";
import { connectDaemon } from "./client.ts";
import { engineText } from "./engine-tables.ts";
import { ask, askList, print } from "./module-commands.ts";
import { cpuOf } from "./power-commands.ts";
import { attachTo } from "./run.ts";
import { migrationTable, movesTable, processesTable } from "./tables.ts";
import { writeTrace } from "./trace-file.ts";

interface Json {
  json?: boolean;
}

interface UpgradeFlags extends Json {
  to: string;
  all?: boolean;
  finalize?: boolean;
  trace?: string;
}

export function pidOf(text: string): number {
  if (!/^\d+$/.test(text)) throw new HostError("EINVAL", `'${text}' is no process: give a pid, see 'mkvm ps'`);
  return Number(text);
}

export function addProcessCommands(program: Command, done: (status: number) => void): void {
  program
    .command("ps")
    .summary("list processes and their VMs")
    .description("Lists processes, the modules that their VMs are on, and where these can roll back to.")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm ps --json")
    .action(async (flags: Json) => {
      const processes = await askList((daemon) => daemon.call("ps"));
      print(processes, flags.json, () => processesTable(processes));
    });
  program
    .command("console <pid>")
    .summary("attach to a console")
    .description(
      "Shows a process's console and passes input on. Ctrl-] on a terminal, or Ctrl-C without one, leaves it running.",
    )
    .option("--dump", "print what is kept of it and return")
    .addHelpText("after", "\nExamples:\n  mkvm console 1\n  mkvm console 1 --dump | tail")
    .action(async (text: string, flags: { dump?: boolean }) => {
      const pid = pidOf(text);
      const daemon = await connectDaemon();
      try {
        if (flags.dump) process.stdout.write(Buffer.from(await daemon.call("console", pid), "base64"));
        else done(await attachTo(daemon, pid));
      } finally {
        daemon.close();
      }
    });
  program
    .command("kill <pid>")
    .summary("end a process")
    .description("Ends a process and its VMs.")
    .addHelpText("after", "\nExample:\n  mkvm kill 1")
    .action((pid: string) => ask((daemon) => daemon.call("kill", pidOf(pid))));
  program
    .command("engine-stats <pid>")
    .summary("show what the engine did for a VM")
    .description(
      "Shows what was translated for a process's VMs and its VM exits; where time went too, if it runs with --engine-stats.",
    )
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm run --kernel bzImage --detach --engine-stats\n  mkvm engine-stats 1")
    .action(async (pid: string, flags: Json) => {
      const report = await ask((daemon) => daemon.call("engineReport", pidOf(pid)));
      print(report, flags.json, () => engineText(report));
    });
  addMoveCommands(program, done);
  program
    .command("dmesg")
    .summary("show the kernel log")
    .description("Shows the log of the host, its CPUs and modules.")
    .option("-f, --follow", "go on with what comes")
    .option("--json", "print JSON, one entry a line with --follow")
    .addHelpText("after", "\nExamples:\n  mkvm dmesg\n  mkvm dmesg --follow --json")
    .action(async (flags: Json & { follow?: boolean }) => {
      const daemon = await connectDaemon();
      try {
        const entries = await daemon.call("dmesg");
        if (flags.json && !flags.follow) return console.log(JSON.stringify(entries, null, 2));
        const show = (entry: (typeof entries)[number]) =>
          console.log(flags.json ? JSON.stringify(entry) : formatLogEntry(entry));
        entries.forEach(show);
        if (!flags.follow) return;
        const leave = () => daemon.close();
        process.on("SIGINT", leave);
        await Promise.race([daemon.stream("follow", (stream) => "entry" in stream && show(stream.entry)), daemon.closed]).catch(
          () => {},
        );
      } finally {
        daemon.close();
      }
    });
}

function addMoveCommands(program: Command, done: (status: number) => void): void {
  const show = (reports: readonly MoveReport[], flags: Json & { trace?: string }) => {
    if (flags.trace !== undefined) writeTrace(flags.trace, reports);
    print(reports, flags.json, () => movesTable(reports));
    for (const { pid, from, to, failed } of reports) {
      if (!failed) continue;
      process.stderr.write(
        `mkvm: process ${pid} stays ${from ? `on ${from}` : "where it is"}: ${failed.step} on ${to} failed: ${failed.reason}\n`,
      );
      done(1);
    }
  };
  program
    .command("upgrade [pid]")
    .summary("move running VMs to another module")
    .description(
      "Moves the VMs of a process, or of all, to another module while they run. Until 'finalize' they can roll back.",
    )
    .requiredOption("--to <module>", "loaded module")
    .option("--all", "every VM that is not there yet")
    .option("--finalize", "give up the way back at once")
    .option("--trace <file>", "write the steps as a timeline, in the Trace Event Format of trace viewers")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  mkvm upgrade 1 --to kvm2\n  mkvm upgrade --all --to kvm2 --finalize\n  mkvm upgrade 1 --to kvm2 --trace move.json",
    )
    .action(async (text: string | undefined, flags: UpgradeFlags) => {
      if ((text === undefined) === (flags.all === undefined))
        throw new HostError("EINVAL", "name one process, or --all: see 'mkvm ps'");
      const options: UpgradeOptions = {
        pid: text === undefined ? "all" : pidOf(text),
        to: flags.to,
        finalize: flags.finalize ?? false,
      };
      show(await ask((daemon) => daemon.call("upgrade", options)), flags);
    });
  program
    .command("rollback <pid>")
    .summary("move VMs back to the module they came from")
    .description("Moves the VMs of a process back to the module they came from. After 'finalize' there is no way back.")
    .option("--trace <file>", "write the steps as a timeline, in the Trace Event Format of trace viewers")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm rollback 1")
    .action(async (pid: string, flags: Json & { trace?: string }) =>
      show([await ask((daemon) => daemon.call("rollback", pidOf(pid)))], flags),
    );
  program
    .command("migrate <pid>")
    .summary("move a running VM to another logical CPU")
    .description(
      "Moves a process with its VMs to another logical CPU while they run, by the same state that moves them between modules.",
    )
    .requiredOption("--cpu <number>", "logical CPU, see 'mkvm cpu list'")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm migrate 1 --cpu 1")
    .action(async (text: string, flags: Json & { cpu: string }) => {
      const options = { pid: pidOf(text), cpu: cpuOf(flags.cpu) };
      const report = await ask((daemon) => daemon.call("migrate", options));
      print(report, flags.json, () => migrationTable(report));
      if (!report.failed) return;
      const { pid, toCpu, failed } = report;
      process.stderr.write(`mkvm: process ${pid} did not move to cpu${toCpu}: ${failed.step} failed: ${failed.reason}\n`);
      done(1);
    });
  program
    .command("finalize <pid>")
    .summary("give up the way back")
    .description("Makes a move final: the VM may use all that its module offers, and the old module is no longer held for it.")
    .option("--json", "print JSON")
    .addHelpText("after", "\nExample:\n  mkvm finalize 1")
    .action(async (pid: string, flags: Json) => {
      const released = await ask((daemon) => daemon.call("finalize", pidOf(pid)));
      print({ released }, flags.json, () => `no longer held: ${released.join(", ")}`);
    });
}
