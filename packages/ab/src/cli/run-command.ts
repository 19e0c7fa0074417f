import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { compare } from "../compare.ts";
import { AbError, ExitStatus } from "../errors.ts";
import { checkPlan, type PlanFile, readPlanFile } from "../plan/read-plan.ts";
import { newSeed } from "../run/random.ts";
import { interruptible } from "./interruption.ts";
import { createProgress } from "./progress.ts";
import { addReportOptions, checkReportFlags, type ReportFlags, writeReports } from "./reports.ts";
import { parseThreshold } from "./threshold-flag.ts";
import { warnOfFew } from "./warnings.ts";

interface RunFlags extends ReportFlags {
  a?: string;
  b?: string;
  aParam?: string[];
  bParam?: string[];
  kernel?: string;
  initrd?: string;
  append?: string;
  format?: string;
  memory?: string;
  cpus?: string;
  start?: string;
  end?: string;
  script?: string;
  clock?: string;
  schedule?: string;
  rounds?: string;
  maxRounds?: string;
  warmUp?: string;
  timeout?: string;
  seed?: string;
  moves?: string;
  threshold?: string[];
}

export function addRunCommand(program: Command, done: (status: number) => void): void {
  const command = program
    .command("run")
    .summary("compare two modules on a workload")
    .description(
      "Runs a workload on two modules in turn, in random order, and compares what it took. Give a plan, or say it with flags; a flag wins over the plan.",
    )
    .argument("[plan]", "plan, as JSON")
    .option("--a <module>", "arm A: package name or path")
    .option("--b <module>", "arm B")
    .option("--a-param <name=value...>", "parameter of arm A's module")
    .option("--b-param <name=value...>", "parameter of arm B's module")
    .option("--kernel <image>", "image to run")
    .option("--initrd <file>", "initial RAM file system")
    .option("--append <text>", "kernel command line")
    .addOption(new Option("--format <kind>", "raw code").choices(["flat16", "flat32", "flat64"]))
    .option("--memory <size>", "RAM of the guest")
    .option("--cpus <number>", "vCPUs")
    .option("--start <text>", "text on the console that begins the measured part")
    .option("--end <text>", "text on the console that ends it")
    .option("--script <file>", "run this shell script in Linux instead; the initrd has /bin/sh")
    .addOption(new Option("--clock <kind>", "real time, or instructions counted").choices(["wall", "icount"]))
    .addOption(new Option("--schedule <kind>", "arms in turn, or at once on two CPUs").choices(["interleaved", "concurrent"]))
    .option("--rounds <number>", "measured runs of each arm")
    .option(
      "--max-rounds <number>",
      "more of them, up to so many, until what is judged is known as exactly as its threshold asks",
    )
    .option("--warm-up <number>", "runs of each arm before, not counted")
    .option("--timeout <seconds>", "real time that one run may take")
    .option("--seed <number>", "repeats an order and its intervals")
    .option("--moves <parts>", "move each VM to the other arm and back at these parts of the workload, as 0.3,0.6")
    .option("--threshold <metric:change...>", "judge a metric, as 'exits:+5%' or 'kernel_memory:+65536'; - for lower is worse");
  addReportOptions(command)
    .addHelpText(
      "after",
      `
Status: 0 nothing regressed, 1 something did, 2 inconclusive, 3 a run failed, 64 wrong flags, 65 no plan or an unknown metric,
66 a file cannot be read, 69 an arm cannot be loaded, 73 a report cannot be written, 130 interrupted.

Examples:
  mkvm ab run plan.json --html report.html
  mkvm ab run --a @mkvm/kvm-v1 --b @mkvm/kvm-v2 --kernel guest.elf --end done --clock icount --threshold exits:+5%
  mkvm ab run --a @mkvm/kvm-v2 --b @mkvm/kvm-v2 --b-param halt_poll_ns=0 --kernel bzImage --initrd initrd --script load.sh`,
    )
    .action(async (plan: string | undefined, flags: RunFlags) => done(await run(plan, flags)));
}

async function run(path: string | undefined, flags: RunFlags): Promise<number> {
  const file = path === undefined ? undefined : readPlanFile(path);
  const { plan: given, directory } = withFlags(file, flags);
  checkReportFlags(flags);
  const plan = { ...given, seed: given.seed ?? newSeed() };
  const progress = createProgress(flags.quiet === true || flags.json === "-");
  const result = await interruptible(async (signal) => {
    // Before the first run, so that one that ends badly can be repeated too.
    if (!flags.quiet) process.stderr.write(`mkvm ab: seed ${plan.seed}\n`);
    try {
      return await compare(plan, { directory, signal, onProgress: progress.step });
    } finally {
      progress.stop();
    }
  });
  await writeReports(result, flags);
  warnOfFew(result);
  const { failure } = result;
  if (failure) {
    const when = failure.round === "warm-up" ? "its warm-up" : `round ${failure.round}`;
    process.stderr.write(`mkvm ab: arm ${failure.arm} failed in ${when}: ${failure.reason}\n`);
  }
  if (result.interrupted) process.stderr.write("mkvm ab: interrupted: the VMs are stopped, the report is partial\n");
  return result.exitStatus;
}

/** The plan with what flags say put over it. @throws AbError */
function withFlags(file: PlanFile | undefined, flags: RunFlags): PlanFile {
  const number = (option: string, text: string | undefined) => {
    if (text === undefined) return undefined;
    if (!/^\d+(\.\d+)?$/.test(text)) throw new AbError(ExitStatus.usage, `--${option} ${text}: give a number`);
    return Number(text);
  };
  const over = defined({
    clock: flags.clock,
    schedule: flags.schedule,
    rounds: number("rounds", flags.rounds),
    maxRounds: number("max-rounds", flags.maxRounds),
    warmUp: number("warm-up", flags.warmUp),
    timeoutS: number("timeout", flags.timeout),
    seed: number("seed", flags.seed),
    moves: flags.moves?.split(",").map((part) => number("moves", part)),
    thresholds: flags.threshold?.map(parseThreshold),
  });
  const workload = defined({
    kernel: here(flags.kernel),
    initrd: here(flags.initrd),
    append: flags.append,
    format: flags.format,
    memory: flags.memory,
    cpus: number("cpus", flags.cpus),
    start: flags.start,
    end: flags.end,
    script: here(flags.script),
  });
  const arm = (module: string | undefined, words: string[] | undefined) =>
    defined({
      module: module?.startsWith(".") ? here(module) : module,
      parameters: words && Object.fromEntries(words.map(parameterOf)),
    });
  const [a, b] = [arm(flags.a, flags.aParam), arm(flags.b, flags.bParam)];
  if (!file) {
    for (const [option, value] of [
      ["a", flags.a],
      ["b", flags.b],
      ["kernel", flags.kernel],
    ] as const) {
      if (value === undefined) throw new AbError(ExitStatus.usage, `--${option} is missing: give it, or a plan`);
    }
    if (flags.script === undefined && flags.end === undefined) {
      throw new AbError(ExitStatus.usage, "--end is missing: say by what text on the console the workload has ended");
    }
    const kind = flags.script === undefined ? "image" : "script";
    return { plan: checkPlan({ ...over, arms: { a, b }, workload: { kind, ...workload } }), directory: process.cwd() };
  }
  const { plan, directory } = file;
  const arms = { a: { ...plan.arms.a, ...a }, b: { ...plan.arms.b, ...b } };
  return { plan: checkPlan({ ...plan, ...over, arms, workload: { ...plan.workload, ...workload } }), directory };
}

/** Paths of flags are from where the user stands, not from the plan's folder. */
function here(path: string | undefined): string | undefined {
  return path === undefined ? undefined : resolve(path);
}

function parameterOf(word: string): [string, string] {
  const at = word.indexOf("=");
  if (at <= 0) throw new AbError(ExitStatus.usage, `'${word}' is no parameter: write name=value`);
  return [word.slice(0, at), word.slice(at + 1)];
}

function defined<Value extends object>(value: Value): Partial<Value> {
  return Object.fromEntries(Object.entries(value).filter(([, part]) => part !== undefined)) as Partial<Value>;
}
