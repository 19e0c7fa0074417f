import { type Command, InvalidArgumentError } from "commander";
import type { VmStatistics } from "../control/types.ts";
import { HostError } from "../errors.ts";
import type { DaemonClient } from "./client.ts";
import { askList } from "./module-commands.ts";
import { pidOf } from "./process-commands.ts";
import { statisticsTables } from "./statistics-table.ts";

interface Flags {
  json?: boolean;
  all?: boolean;
  watch?: number;
  times?: number;
}

const shortestWatchS = 0.1;
/** Clears the screen of a terminal, and goes to its top. */
const clearScreen = "\u001b[2J\u001b[H";

export function addStatCommand(program: Command): void {
  program
    .command("stat [vm]")
    .summary("show what VMs count: exits, halts, interrupts")
    .description(
      "Shows the statistics of the VMs of a process, or of all, and of their vCPUs, as their modules count them. Those of a process that has ended lately are what they were at its end.",
    )
    .option("--json", "print JSON, one look a line with --watch")
    .option("--all", "also what is 0 everywhere")
    .option("--watch <seconds>", "look again and again, and show what has changed since", secondsOf)
    .option("--times <number>", "with --watch: how often to look (default: until Ctrl-C)", timesOf)
    .addHelpText("after", "\nExamples:\n  mkvm stat\n  mkvm stat 1 --watch 1\n  mkvm stat 1 --json")
    .action(async (text: string | undefined, flags: Flags) => {
      const pid = text === undefined ? undefined : pidOf(text);
      if (flags.times !== undefined && flags.watch === undefined)
        throw new HostError("EINVAL", "--times goes with --watch: say how many seconds lie between two looks");
      await askList((daemon) => look(daemon, pid, flags));
    });
}

async function look(daemon: DaemonClient, pid: number | undefined, flags: Flags): Promise<void> {
  let before: VmStatistics[] | undefined;
  const times = flags.watch === undefined ? 1 : (flags.times ?? Number.POSITIVE_INFINITY);
  for (let time = 0; time < times; time++) {
    if (before !== undefined) await new Promise((resolve) => setTimeout(resolve, flags.watch! * 1000));
    const vms = await (pid === undefined ? daemon.call("statistics") : daemon.call("statistics", pid));
    if (vms.length === 0 && before === undefined) {
      throw new HostError(
        "ENOENT",
        pid === undefined ? "no VM runs: see 'mkvm ps'" : `process ${pid} has no VM: see 'mkvm ps'`,
      );
    }
    if (flags.json) console.log(JSON.stringify(vms, null, flags.watch === undefined ? 2 : 0));
    else {
      const text = statisticsTables(vms, { all: flags.all ?? false, ...(before && { before }) });
      console.log(flags.watch !== undefined && process.stdout.isTTY ? clearScreen + text : text);
    }
    if (vms.length === 0) return;
    before = vms;
  }
}

function secondsOf(text: string): number {
  const seconds = Number(text);
  if (!(seconds >= shortestWatchS && Number.isFinite(seconds)))
    throw new InvalidArgumentError(`give seconds, from ${shortestWatchS} on`);
  return seconds;
}

function timesOf(text: string): number {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError("give a number from 1 on");
  return Number(text);
}
