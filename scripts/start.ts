/**
 * The main job, shown once: two KVM modules on one host, a Linux that moves between them while it runs, and what it noticed.
 * Exit status 0 only if every step held and the guest noticed nothing.
 */
import { parseArgs } from "node:util";
import { createHost, type Host, type MoveReport } from "@mkvm/host";
import Table from "cli-table3";
import { Listr } from "listr2";
import { type DemoGuest, demoGuest } from "./demo/guest-image.ts";
import { GuestSession } from "./demo/guest-session.ts";

const HELP = `Usage: pnpm start [options]

Boots a kernel on kvm1, moves it to kvm2, back, and on again while it runs, and reports what it noticed.

  --kernel FILE    a Linux bzImage or vmlinux, with --initrd
  --initrd FILE    its initial file system; /init must run the workload of packages/testkit/src/linux-guest/init.ts
  --append TEXT    more for the kernel command line
  --cache FOLDER   where the distribution's kernel is kept (default: mkvm in the user's cache folder)
  --memory SIZE    guest RAM (default: 512M)
  --vendor NAME    the machine's processors: intel or amd (default: intel)
  --tiny           boot the tiny guest of this repository, no Linux
  --verbose        print the guest's whole console at the end`;

/** Rounds of the workload between two moves: enough for timer interrupts, forks and page faults on either side. */
const ROUNDS_BETWEEN_MOVES = 12;

interface Row {
  step: string;
  took: string;
  blackout: string;
  detail: string;
}

interface Demo {
  host: Host;
  guest: DemoGuest;
  session: GuestSession;
  pid: number;
}

async function run(): Promise<number> {
  const option = { type: "string" } as const;
  const flag = { type: "boolean", default: false } as const;
  const { values } = parseArgs({
    options: {
      kernel: option,
      initrd: option,
      append: option,
      cache: option,
      memory: { ...option, default: "512M" },
      vendor: { ...option, default: "intel" },
      tiny: flag,
      verbose: flag,
      help: flag,
    },
  });
  if (values.help) {
    console.log(HELP);
    return 0;
  }
  const { vendor } = values;
  if (vendor !== "intel" && vendor !== "amd") {
    console.error(`--vendor ${vendor}: intel and amd are there`);
    return 1;
  }
  const rows: Row[] = [];
  const demo: Partial<Demo> = {};
  const interrupted = new Promise<"interrupted">((resolve) => {
    process.on("SIGINT", () => resolve("interrupted"));
    process.on("SIGTERM", () => resolve("interrupted"));
  });
  const outcome = await Promise.race([
    interrupted,
    steps(demo, rows, vendor, { ...values, log: () => {} })
      .run()
      .then(
        () => undefined,
        (error: Error) => error,
      ),
  ]);
  if (outcome === "interrupted") {
    await demo.host?.close();
    console.error("\ninterrupted: the guest was killed, the modules are unloaded");
    process.exit(130);
  }
  const failure = outcome;
  const { session, host } = demo;
  if (values.verbose && session) console.log(`\n${session.transcript}`);
  console.log(`\n${table(rows)}`);
  const problems = failure ? [failure.message, ...(session?.report.problems ?? [])] : (session?.report.problems ?? []);
  if (problems.length) {
    console.log(`What the guest noticed, or what went wrong:\n${problems.map((line) => `  - ${line}`).join("\n")}`);
    if (host) for (const entry of (await host.dmesg()).slice(-15)) console.log(`  | ${entry.source}: ${entry.message}`);
  } else if (session) {
    const { rounds, ticks } = session.report;
    console.log(
      `What the guest noticed: nothing. ${rounds} rounds, every checksum right, ${ticks} timer interrupts, no message in its log.`,
    );
  }
  await host?.close();
  return problems.length ? 1 : 0;
}

function steps(demo: Partial<Demo>, rows: Row[], vendor: "intel" | "amd", options: Parameters<typeof demoGuest>[0]): Listr {
  /** A step: its title, and work that returns what to show beside it. */
  const step = (title: string, work: (say: (line: string) => void) => Promise<Partial<Row> | undefined>) => ({
    title,
    task: async (_: unknown, task: { title: string; output: string }) => {
      const began = performance.now();
      const row = await work((line) => {
        task.output = line;
      });
      const whole = { step: title, took: formatMs(performance.now() - began), blackout: "", detail: "", ...row };
      rows.push(whole);
      task.title = [title, whole.took, row?.blackout && `blackout ${row.blackout}`, row?.detail].filter(Boolean).join(", ");
    },
    rendererOptions: { persistentOutput: false },
  });
  const all = () => demo as Demo;

  const move = (title: string, to: string, finalize: boolean) =>
    step(title, async (say) => {
      const { host, session, pid } = all();
      const [report] = await host.upgrade({ pid, to, finalize });
      if (!report.moved) throw new Error(`the move to ${to} failed at ${report.failed?.step}: ${report.failed?.reason}`);
      const goal = session.report.rounds + ROUNDS_BETWEEN_MOVES;
      await session.until(
        `round ${goal}`,
        () => session.report.rounds >= goal,
        () => say(session.lastLine),
      );
      const moveMs = report.steps.reduce((sum, { durationUs }) => sum + durationUs, 0) / 1000;
      return { took: formatMs(moveMs), blackout: formatMs(report.blackoutUs / 1000), detail: describeMove(report) };
    });

  return new Listr(
    [
      step("Find a guest", async (say) => {
        demo.guest = await demoGuest({ ...options, log: say });
        return { detail: demo.guest.name };
      }),
      step("Load @mkvm/kvm-v1 as kvm1, link /dev/kvm to it", async () => {
        demo.host = await createHost({ vendor });
        const module = await demo.host.insmod("@mkvm/kvm-v1");
        await demo.host.ln("/dev/kvm1", "/dev/kvm");
        return { detail: `version ${module.version}` };
      }),
      step("Boot the guest to user space", async (say) => {
        const { host, guest } = all();
        const process = await host.run({ program: "@mkvm/vmm", args: guest.vmmArguments });
        demo.pid = process.pid;
        demo.session = new GuestSession(process, guest.digests);
        const session = demo.session;
        await session.until(
          "its first round",
          () => session.report.rounds > 0,
          () => say(session.lastLine),
        );
        return { detail: `pid ${process.pid}` };
      }),
      step("Let the guest's workload check itself", async (say) => {
        const { session } = all();
        await session.until(
          "its first rounds",
          () => session.report.rounds >= ROUNDS_BETWEEN_MOVES,
          () => say(session.lastLine),
        );
        session.command("mark");
        await session.until("the mark in its log", () => session.report.marked);
        return { detail: `${session.report.rounds} rounds` };
      }),
      step("Load @mkvm/kvm-v2 as kvm2 beside it", async () => ({
        detail: `version ${(await all().host.insmod("@mkvm/kvm-v2")).version}`,
      })),
      move("Move the running VM to kvm2", "kvm2", false),
      move("Move it back to kvm1", "kvm1", false),
      move("Move it to kvm2 again, and finalise", "kvm2", true),
      step("Unload kvm1", async () => {
        const { host } = all();
        await host.ln("/dev/kvm2", "/dev/kvm");
        await host.rmmod("kvm1");
        return { detail: (await host.lsmod()).map((module) => module.name).join(", ") };
      }),
      step("Power the guest off", async () => {
        const { session, host } = all();
        session.command("stop");
        const status = await session.ended();
        if (status !== 0) throw new Error(`the guest ended with status ${status}: ${session.lastLine}`);
        if (!session.report.ended) throw new Error("the guest powered off without its closing report");
        await host.rmmod("kvm2");
        return { detail: `${session.report.rounds} rounds in all` };
      }),
    ],
    {
      concurrent: false,
      exitOnError: true,
      registerSignalListeners: false,
      fallbackRenderer: "simple",
      rendererOptions: { collapseSubtasks: false },
    },
  );
}

function describeMove(report: MoveReport): string {
  const prepare = report.steps.find((step) => step.step === "prepare");
  return `prepared in ${formatMs((prepare?.durationUs ?? 0) / 1000)} beside the running VM, ${report.stateBytes} bytes of state`;
}

function formatMs(ms: number): string {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 3 : 0)} ms`;
}

function table(rows: readonly Row[]): string {
  const view = new Table({ head: ["step", "took", "blackout", ""], style: { head: [], border: [] } });
  for (const row of rows) view.push([row.step, row.took, row.blackout, row.detail]);
  return view.toString();
}

process.exitCode = await run();
