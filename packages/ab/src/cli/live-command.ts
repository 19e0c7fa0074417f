import type { Command } from "commander";
import { AbError, ExitStatus } from "../errors.ts";
import { findDaemon } from "../live/daemon.ts";
import { runLive } from "../live/live-run.ts";
import { checkThresholds } from "../plan/metric-names.ts";
import { type Threshold, thresholdSchema } from "../plan/schema.ts";
import { liveResult } from "../report/run-result.ts";
import { newSeed } from "../run/random.ts";
import { interruptible } from "./interruption.ts";
import { addReportOptions, checkReportFlags, type ReportFlags, writeReports } from "./reports.ts";
import { parseThreshold } from "./threshold-flag.ts";
import { warnOfFew } from "./warnings.ts";

interface LiveFlags extends ReportFlags {
  from: string;
  to: string;
  name?: string;
  for: string;
  seed?: string;
  threshold?: string[];
  keep?: boolean;
}

/** More exits for it, or less done. */
const defaultThresholds: Threshold[] = [
  { metric: "exits", worse: "higher", percent: 5 },
  { metric: "guest_instructions", worse: "lower", percent: 5 },
];

export function addLiveCommand(program: Command, done: (status: number) => void): void {
  const command = program
    .command("live")
    .summary("compare two modules on running VMs")
    .description(
      "Moves half of the daemon's VMs on one module to another, chosen at random, watches both halves, and moves them back.",
    )
    .requiredOption("--from <module>", "arm A: loaded module that the VMs are on")
    .requiredOption("--to <module>", "arm B: loaded module that half of them moves to")
    .option("--name <name>", "only processes of this name")
    .option("--for <seconds>", "how long to watch", "30")
    .option("--keep", "leave the moved half where it is")
    .option("--seed <number>", "repeats the choice of VMs")
    .option("--threshold <metric:change...>", "judge a metric, as 'exits:+5%'; default 5 % more exits, 5 % fewer instructions");
  addReportOptions(command)
    .addHelpText(
      "after",
      `
Counters are compared per second; each VM is one value, so a verdict other than inconclusive takes 4 VMs or more on each arm.
Status: as of 'mkvm ab run'.

Examples:
  mkvm ab live --from kvm1 --to kvm2
  mkvm ab live --from kvm1 --to kvm2 --for 60 --threshold halt_wait_ns:+10% --html report.html --keep`,
    )
    .action(async (flags: LiveFlags) => done(await live(flags)));
}

async function live(flags: LiveFlags): Promise<number> {
  const seconds = Number(flags.for);
  if (!(seconds > 0 && seconds <= 86_400)) throw new AbError(ExitStatus.usage, `--for ${flags.for}: give seconds, up to a day`);
  if (flags.seed !== undefined && !/^\d{1,10}$/.test(flags.seed))
    throw new AbError(ExitStatus.usage, `--seed ${flags.seed}: give a number`);
  const thresholds = flags.threshold?.map((word) => thresholdSchema.parse(parseThreshold(word)));
  checkReportFlags(flags);
  const seed = flags.seed === undefined ? newSeed() : Number(flags.seed);
  const daemon = await findDaemon().catch((thrown: Error) => {
    throw new AbError(ExitStatus.unavailable, thrown.message);
  });
  try {
    const { clock } = await daemon.call("hello");
    if (!flags.quiet) process.stderr.write(`mkvm ab: seed ${seed}\n`);
    const { from, to, name, keep = false } = flags;
    const run = await interruptible((signal) =>
      runLive(daemon, { from, to, ...(name !== undefined && { name }), seconds, seed, keep, signal }),
    );
    if (run.rates.length > 0)
      checkThresholds(thresholds, [...new Set(run.rates.flatMap(({ metrics }) => Object.keys(metrics)))]);
    const judging = {
      clock: clock === "icount" ? ("icount" as const) : ("wall" as const),
      thresholds: thresholds ?? defaultThresholds,
      alpha: 0.05,
      confidence: 0.95,
      resamples: 2000,
      correction: "holm" as const,
    };
    // VMs do not all do the same, so equal values are no proof here: the rank test holds under icount too.
    const result = liveResult(run, { ...judging, clock: "wall" }, seed);
    await writeReports({ ...result, clock: judging.clock }, flags);
    for (const pid of run.ended) process.stderr.write(`mkvm ab: process ${pid} ended meanwhile: it is not counted\n`);
    warnOfFew(result);
    if (run.failure) process.stderr.write(`mkvm ab: ${run.failure.reason}\n`);
    if (run.interrupted) process.stderr.write("mkvm ab: interrupted: the VMs are back, the report is partial\n");
    return result.exitStatus;
  } finally {
    daemon.close();
  }
}
