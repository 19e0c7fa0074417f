/**
 * What moving VMs costs those that use them: blackout, many at once, the time after a move. Prints a table; `--only NAME` measures one
 * row, `--moves` and `--vms` make it shorter. Figures of a machine with other work are of that work: run it on a quiet one.
 */
import { parseArgs } from "node:util";
import { createHost, type Host, type MoveReport } from "@mkvm/host";
import { median, quantile } from "simple-statistics";
import { linuxGuest, RunningGuest, tinyGuest } from "../tests/scenarios/running-guest.ts";

interface Row {
  readonly what: string;
  readonly measured: string;
  readonly goal: string;
}

const { values } = parseArgs({
  options: {
    only: { type: "string" },
    moves: { type: "string", default: "1000" },
    vms: { type: "string", default: "100" },
  },
});
const moves = Number(values.moves);
const vms = Number(values.vms);
/** Moves before those that count: code that has not run yet is slow, and `mkvm upgrade` of a fresh daemon is told apart by its row. */
const warmUpMoves = 40;

const ms = (us: number): string => `${(us / 1000).toFixed(2)} ms`;
const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

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

async function linux(memory: string, more: readonly string[] = []): Promise<string[]> {
  const args = await linuxGuest("check", memory);
  if (!args) throw new Error("no Linux here: run on Debian, or fill the cache folder");
  return [...args, ...more];
}

/** `count` moves to and fro, each when the guest has gone on. */
async function moveOften(host: Host, guest: RunningGuest, count: number): Promise<MoveReport[]> {
  const reports: MoveReport[] = [];
  for (let move = 0; move < count; move++) {
    const [report] = await host.upgrade({ pid: guest.pid, to: move % 2 ? "kvm1" : "kvm2" });
    if (!report?.moved) throw new Error(`move ${move} failed at ${report?.failed?.step}: ${report?.failed?.reason}`);
    reports.push(report);
  }
  return reports;
}

const blackouts = (reports: readonly MoveReport[]): number[] => reports.map(({ blackoutUs }) => blackoutUs);

/** Moves of a guest that works; the first one, of code that has never run, apart. */
async function measureMoves(args: string[], count: number): Promise<{ first: MoveReport; reports: MoveReport[] }> {
  return withHost(1, async (host) => {
    const guest = await RunningGuest.start(host, args);
    await guest.rounds(2);
    const [first] = await moveOften(host, guest, warmUpMoves);
    const reports = await moveOften(host, guest, count);
    await guest.stop();
    return { first: first!, reports };
  });
}

async function underLoad(): Promise<Row[]> {
  const { first, reports } = await measureMoves(await linux("512M"), moves);
  const times = blackouts(reports);
  const stepUs = (report: MoveReport, step: string) => report.steps.find((each) => each.step === step)?.durationUs ?? 0;
  const prepare = median(reports.map((report) => stepUs(report, "check") + stepUs(report, "prepare")));
  const load = `1 vCPU, 512 MiB, Linux under load, ${moves} moves`;
  return [
    { what: `blackout, ${load}: median`, measured: ms(median(times)), goal: "under 0.3 ms" },
    { what: "the same, 99th percentile", measured: ms(quantile(times, 0.99)), goal: "under 1 ms" },
    { what: "the first move of a new daemon", measured: ms(first.blackoutUs), goal: "" },
    { what: "check and prepare, while the VM runs: median", measured: ms(prepare), goal: "under 50 ms" },
  ];
}

async function againstRam(): Promise<Row[]> {
  const each = Math.max(20, Math.round(moves / 5));
  const medians: [string, number][] = [];
  for (const memory of ["64M", "512M", "3072M"]) {
    const args = tinyGuest();
    args[args.indexOf("--memory") + 1] = memory;
    const { reports } = await measureMoves(args, each);
    medians.push([memory, median(blackouts(reports))]);
  }
  const [, least] = medians[0]!;
  const [, most] = medians.at(-1)!;
  const measured = medians.map(([memory, us]) => `${memory} ${ms(us)}`).join(", ");
  return [
    {
      what: "blackout against RAM, medians",
      measured: `${measured}: ${percent(most / least - 1)} more`,
      goal: "under 20 % more",
    },
  ];
}

async function manyVcpus(): Promise<Row[]> {
  const { reports } = await measureMoves(await linux("512M", ["--cpus", "16"]), Math.max(20, Math.round(moves / 5)));
  return [{ what: "blackout, 16 vCPUs, Linux: median", measured: ms(median(blackouts(reports))), goal: "under 2 ms" }];
}

async function manyVms(): Promise<Row[]> {
  return withHost(2, async (host) => {
    const guests: RunningGuest[] = [];
    for (let vm = 0; vm < vms; vm++) guests.push(await RunningGuest.start(host, tinyGuest()));
    for (const guest of guests) await guest.rounds(1);
    const all = async (to: string): Promise<[number, MoveReport[]]> => {
      const began = performance.now();
      const reports = await host.upgrade({ pid: "all", to });
      const failed = reports.find(({ moved }) => !moved);
      if (failed) throw new Error(`process ${failed.pid} failed at ${failed.failed?.step}: ${failed.failed?.reason}`);
      return [performance.now() - began, reports];
    };
    await all("kvm2");
    const [, back] = await all("kvm1");
    const [tookMs, reports] = await all("kvm2");
    for (const guest of guests) await guest.rounds(1);
    const longest = Math.max(...blackouts(reports));
    return [
      { what: `${vms} VMs moved by one command`, measured: ms(tookMs * 1000), goal: "under 2 s" },
      {
        what: "the same, longest blackout of one",
        measured: ms(longest),
        goal: `of one alone: ${ms(median(blackouts(back)))}`,
      },
    ];
  });
}

/** Guest instructions per second around a move, against those just before it. */
async function afterwards(): Promise<Row[]> {
  return withHost(1, async (host) => {
    const guest = await RunningGuest.start(host, await linux("512M"));
    await guest.rounds(5);
    await moveOften(host, guest, warmUpMoves);
    const retired = async () => (await host.ps()).find(({ pid }) => pid === guest.pid)!.retiredInstructions;
    const rate = async (): Promise<number> => {
      const [before, began] = [await retired(), performance.now()];
      await new Promise((resolve) => setTimeout(resolve, 1000));
      return ((await retired()) - before) / (performance.now() - began);
    };
    const first: number[] = [];
    const tenth: number[] = [];
    for (let round = 0; round < Math.max(3, Math.round(moves / 100)); round++) {
      const usual = median([await rate(), await rate(), await rate()]);
      await moveOften(host, guest, 1);
      first.push(1 - (await rate()) / usual);
      for (let second = 2; second < 10; second++) await rate();
      tenth.push(1 - (await rate()) / usual);
      await host.rollback(guest.pid);
    }
    await guest.stop();
    return [
      { what: "slowdown in the second after a move: median", measured: percent(median(first)), goal: "under 5 %" },
      { what: "the same, in the tenth second", measured: percent(median(tenth)), goal: "none" },
    ];
  });
}

const parts: Readonly<Record<string, () => Promise<Row[]>>> = {
  load: underLoad,
  ram: againstRam,
  vcpus: manyVcpus,
  vms: manyVms,
  after: afterwards,
};

const chosen = values.only === undefined ? Object.keys(parts) : values.only.split(",");
const unknown = chosen.find((name) => !Object.hasOwn(parts, name));
if (unknown !== undefined) {
  console.error(`--only ${unknown}: there are ${Object.keys(parts).join(", ")}`);
  process.exit(1);
}
console.log("| what | measured | to reach |\n|---|---|---|");
for (const name of chosen) {
  for (const { what, measured, goal } of await parts[name]!()) console.log(`| ${what} | ${measured} | ${goal} |`);
}
