/** What moving VMs costs those that use them: blackout, many at once, the time while a move is prepared and the time after it. */
import { createHost, type Host, type MoveReport } from "@mkvm/host";
import { median, quantile } from "simple-statistics";
import { linuxGuest, RunningGuest, tinyGuest } from "../../tests/scenarios/running-guest.ts";

export interface UpgradeRow {
  readonly what: string;
  /** "ms" or "%". */
  readonly unit: string;
  readonly value: number;
  /** The words for it; absent where the figure is only shown. */
  readonly goal?: { readonly text: string; readonly reached: boolean };
}

export interface UpgradeContext {
  /** Moves whose blackout is looked at; parts whose moves are dear make a share of them. */
  readonly moves: number;
  /** VMs moved by one command. */
  readonly vms: number;
  progress(text: string): void;
}

export interface UpgradePart {
  readonly name: string;
  /** For `--help`. */
  readonly about: string;
  measure(context: UpgradeContext): Promise<UpgradeRow[]>;
}

/** Moves before those that count: code that has not run yet is slow, and the first move of a fresh daemon has a row of its own. */
const warmUpMoves = 40;

/** What a guest runs on a CPU before it moves to the next. */
const betweenCpuMovesMs = 100;

/** A guest takes a command in its next round, a tenth of a second, and powers off: one that has not ended by then never will. */
const endWithinSeconds = 30;

const below = (what: string, value: number, limit: number, unit: string): UpgradeRow => ({
  what,
  unit,
  value,
  goal: { text: `under ${limit} ${unit}`, reached: value < limit },
});

async function withHost<Result>(cpus: number, body: (host: Host) => Promise<Result>): Promise<Result> {
  const host = await createHost({ directory: process.cwd(), cpus });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    return await body(host);
  } finally {
    await host.close();
  }
}

/** `load`: loops in it that never sleep, beside a workload that checks itself ten times a second. */
async function linux(memory: string, load: number, more: readonly string[] = []): Promise<string[]> {
  const args = await linuxGuest("check", memory, load);
  if (!args) throw new Error("no Linux here: run on Debian, or fill the cache folder");
  return [...args, ...more];
}

/** Ends a guest's workload; throws when it does not end, as a benchmark that waits for it says nothing. */
async function end(guest: RunningGuest): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`the guest did not take "stop" within ${endWithinSeconds} s:\n${guest.transcript.slice(-500)}`)),
      endWithinSeconds * 1000,
    );
  });
  await Promise.race([guest.stop(), late]).finally(() => clearTimeout(timer));
}

interface Measured {
  readonly report: MoveReport;
  /** Instructions of its CPU when the move began. */
  readonly before: number;
}

const retiredOf = async (host: Host, pid: number): Promise<number> =>
  (await host.ps()).find((process) => process.pid === pid)!.retiredInstructions;

/** `count` moves to and fro. */
async function moveOften(host: Host, guest: RunningGuest, count: number): Promise<Measured[]> {
  const measured: Measured[] = [];
  for (let move = 0; move < count; move++) {
    // Its CPU answers the first just before it begins with the second
    const [before, [report]] = await Promise.all([
      retiredOf(host, guest.pid),
      host.upgrade({ pid: guest.pid, to: move % 2 ? "kvm1" : "kvm2" }),
    ]);
    if (!report?.moved) throw new Error(`move ${move} failed at ${report?.failed?.step}: ${report?.failed?.reason}`);
    measured.push({ report, before });
  }
  return measured;
}

/** Instructions per millisecond over a time in which nothing else happens. */
async function rate(host: Host, pid: number, durationMs = 1000): Promise<number> {
  const [before, began] = [await retiredOf(host, pid), performance.now()];
  await new Promise((resolve) => setTimeout(resolve, durationMs));
  return ((await retiredOf(host, pid)) - before) / (performance.now() - began);
}

const blackoutMs = ({ report }: Measured): number => report.blackoutUs / 1000;
const stepMs = ({ report }: Measured, ...steps: string[]): number =>
  report.steps.reduce((sum, { step, durationUs }) => sum + (steps.includes(step) ? durationUs : 0), 0) / 1000;

/** How much of what a guest does else it does while a move is prepared, in percent: before each it has run alone for a while. */
async function sharesInPrepare(host: Host, guest: RunningGuest, count: number): Promise<number[]> {
  const shares: number[] = [];
  for (let move = 0; move < count; move++) {
    const usual = await rate(host, guest.pid, 300);
    const [moved] = await moveOften(host, guest, 1);
    const took = stepMs(moved!, "check", "prepare", "freeze");
    shares.push((100 * (moved!.report.retiredInstructions - moved!.before)) / took / usual);
    await host.rollback(guest.pid);
  }
  return shares;
}

/** Moves of a guest that works; the first one, of code that has never run, apart. */
async function measureMoves(args: string[], count: number): Promise<{ first: Measured; moves: Measured[]; shares: number[] }> {
  return withHost(1, async (host) => {
    const guest = await RunningGuest.start(host, args);
    await guest.rounds(2);
    const [first] = await moveOften(host, guest, warmUpMoves);
    const moves = await moveOften(host, guest, count);
    // To and fro an even number of times: it is on the first module again
    if (count % 2) await host.rollback(guest.pid);
    const shares = await sharesInPrepare(host, guest, Math.max(10, Math.round(count / 20)));
    await end(guest);
    return { first: first!, moves, shares };
  });
}

async function underLoad({ moves: count }: UpgradeContext): Promise<UpgradeRow[]> {
  const { first, moves, shares } = await measureMoves(await linux("512M", 1), count);
  const times = moves.map(blackoutMs);
  const prepare = moves.map((move) => stepMs(move, "check", "prepare"));
  return [
    below(`blackout, 1 vCPU, 512 MiB, Linux under load, ${count} moves: median`, median(times), 0.3, "ms"),
    below("the same, 99th percentile", quantile(times, 0.99), 1, "ms"),
    { what: "the first move of a new daemon", unit: "ms", value: blackoutMs(first) },
    below("check and prepare, 512 MiB: median", median(prepare), 50, "ms"),
    {
      what: "guest instructions meanwhile, of those before: median",
      unit: "%",
      value: median(shares),
      goal: { text: "at least 90 %", reached: median(shares) >= 90 },
    },
  ];
}

async function againstRam({ moves, progress }: UpgradeContext): Promise<UpgradeRow[]> {
  const rows: UpgradeRow[] = [];
  for (const memory of ["64M", "512M", "3072M"]) {
    progress(`ram: ${memory}`);
    const args = tinyGuest();
    args[args.indexOf("--memory") + 1] = memory;
    const measured = await measureMoves(args, Math.max(20, Math.round(moves / 5)));
    rows.push({ what: `blackout, tiny guest, ${memory}: median`, unit: "ms", value: median(measured.moves.map(blackoutMs)) });
  }
  const [least, most] = [rows[0]!.value, rows.at(-1)!.value];
  return [...rows, below("growth of it from 64 MiB to 3 GiB", 100 * (most / least - 1), 20, "%")];
}

async function manyVcpus({ moves }: UpgradeContext): Promise<UpgradeRow[]> {
  const measured = await measureMoves(await linux("512M", 0, ["--cpus", "16"]), Math.max(20, Math.round(moves / 5)));
  const times = measured.moves.map(blackoutMs);
  const step = (...steps: string[]) => median(measured.moves.map((move) => stepMs(move, ...steps)));
  return [
    below("blackout, 16 vCPUs, Linux: median", median(times), 2, "ms"),
    { what: "the same, 99th percentile", unit: "ms", value: quantile(times, 0.99) },
    ...(["freeze", "save", "restore", "verify", "commit"] as const).map((each) => ({
      what: `of it ${each}: median`,
      unit: "ms",
      value: step(each),
    })),
  ];
}

async function manyVms({ vms, progress }: UpgradeContext): Promise<UpgradeRow[]> {
  return withHost(2, async (host) => {
    const guests: RunningGuest[] = [];
    for (let vm = 0; vm < vms; vm++) guests.push(await RunningGuest.start(host, tinyGuest()));
    for (const guest of guests) await guest.rounds(1);
    const retired = async () => (await host.ps()).reduce((sum, each) => sum + each.retiredInstructions, 0);
    const during = async <Result>(work: () => Promise<Result>): Promise<{ result: Result; tookMs: number; rate: number }> => {
      const [before, began] = [await retired(), performance.now()];
      const result = await work();
      const tookMs = performance.now() - began;
      return { result, tookMs, rate: ((await retired()) - before) / (performance.now() - began) };
    };
    const all = async (to: string): Promise<MoveReport[]> => {
      const reports = await host.upgrade({ pid: "all", to });
      const failed = reports.find(({ moved }) => !moved);
      if (failed) throw new Error(`process ${failed.pid} failed at ${failed.failed?.step}: ${failed.failed?.reason}`);
      return reports;
    };
    progress(`vms: ${vms} of them run`);
    await all("kvm2");
    await all("kvm1");
    const usual = await during(() => new Promise((resolve) => setTimeout(resolve, 2000)));
    const { result: reports, tookMs, rate: meanwhile } = await during(() => all("kvm2"));
    for (const guest of guests) await guest.rounds(1);
    const times = reports.map(({ blackoutUs }) => blackoutUs / 1000);
    return [
      below(`${vms} VMs moved by one command`, tookMs, 2000, "ms"),
      below("the same, longest blackout of one", Math.max(...times), 1, "ms"),
      { what: "the same, median blackout", unit: "ms", value: median(times) },
      { what: "instructions of all guests meanwhile, of those before", unit: "%", value: (100 * meanwhile) / usual.rate },
    ];
  });
}

/** Moves to and fro between two logical CPUs, of a guest that works; the other CPU has one that works as well. */
async function betweenCpus({ moves, progress }: UpgradeContext): Promise<UpgradeRow[]> {
  return withHost(2, async (host) => {
    const guest = await RunningGuest.start(host, await linux("512M", 1), { cpu: 0 });
    const other = await RunningGuest.start(host, tinyGuest(), { cpu: 1 });
    await guest.rounds(2);
    await other.rounds(1);
    const times: number[] = [];
    const count = Math.max(20, Math.round(moves / 10));
    for (let move = 0; move < warmUpMoves + count; move++) {
      if (move === warmUpMoves) progress(`cpus: ${count} moves`);
      const report = await host.migrate({ pid: guest.pid, cpu: (move + 1) % 2 });
      if (!report.moved) throw new Error(`move ${move} failed at ${report.failed?.step}: ${report.failed?.reason}`);
      if (move >= warmUpMoves) times.push(report.blackoutUs / 1000);
      // So that there is translated code to lose
      await new Promise((resolve) => setTimeout(resolve, betweenCpuMovesMs));
    }
    await end(guest);
    return [
      below(`blackout of a move to another CPU, both busy, 1 vCPU, 512 MiB, ${count} moves: median`, median(times), 5, "ms"),
      { what: "the same, 99th percentile", unit: "ms", value: quantile(times, 0.99) },
    ];
  });
}

/** Guest instructions per second around a move, against those just before it. */
async function afterwards({ moves, progress }: UpgradeContext): Promise<UpgradeRow[]> {
  return withHost(1, async (host) => {
    const guest = await RunningGuest.start(host, await linux("512M", 1));
    const { pid } = guest;
    await guest.rounds(5);
    await moveOften(host, guest, warmUpMoves);
    const first: number[] = [];
    const tenth: number[] = [];
    const spread: number[] = [];
    const rounds = Math.max(3, Math.round(moves / 100));
    for (let round = 0; round < rounds; round++) {
      progress(`after: round ${round + 1} of ${rounds}`);
      const before = [await rate(host, pid), await rate(host, pid), await rate(host, pid)];
      const usual = median(before);
      spread.push(100 * ((Math.max(...before) - Math.min(...before)) / usual));
      await moveOften(host, guest, 1);
      first.push(100 * (1 - (await rate(host, pid)) / usual));
      for (let second = 2; second < 10; second++) await rate(host, pid);
      tenth.push(100 * (1 - (await rate(host, pid)) / usual));
      await host.rollback(pid);
    }
    await end(guest);
    const noise = median(spread);
    return [
      below("slowdown in the second after a move: median", median(first), 5, "%"),
      {
        what: "the same, in the tenth second",
        unit: "%",
        value: median(tenth),
        goal: {
          text: `none: within what seconds differ by without a move, ${noise.toFixed(1)} %`,
          reached: median(tenth) <= noise,
        },
      },
    ];
  });
}

export const upgradeParts: readonly UpgradePart[] = [
  { name: "load", about: "blackout under load, prepare, and how the VM runs meanwhile", measure: underLoad },
  { name: "ram", about: "blackout against RAM", measure: againstRam },
  { name: "vcpus", about: "blackout with 16 vCPUs", measure: manyVcpus },
  { name: "vms", about: "many VMs by one command", measure: manyVms },
  { name: "cpus", about: "moves between logical CPUs", measure: betweenCpus },
  { name: "after", about: "how fast a VM is after a move", measure: afterwards },
];
