/** Debian's cloud kernel with a busybox initramfs, on mkvm and on TCG: the same kernel, the same initrd, the same workloads. */
import { findLinuxGuest, type LinuxGuest } from "@mkvm/testkit";
import { type CpuClock, ownCpuTime } from "./cpu-time.ts";
import { runMkvm } from "./mkvm-run.ts";
import { interleaved, type Part, type PartContext } from "./part.ts";
import { qemuVersion, runTcg } from "./qemu.ts";
import { goalFaster, type Row } from "./row.ts";
import { missingPeer } from "./timing-guests.ts";

/** Workloads of testkit's linux-guest/init.ts, and what they are. */
const workloads: Readonly<Record<string, string>> = {
  shell: "shell loop, 100,000 rounds",
  md5: "md5sum of 64 MiB",
  gzip: "gzip of 16 MiB",
  forks: "2,000 forks of a small program",
};
const memoryMib = 512;

/**
 * TCG's machine for Linux, which each round runs on. Measured with every other one (`--only linux.tcg-machines`): the machine's devices
 * are what differs until init, and what the CPU model offers beyond the default costs the kernel more than it gains. `-M microvm` is not among them: Debian's cloud
 * kernel finds nothing on it to calibrate the TSC by, with its PIT or without, and hangs there.
 */
const fastestTcg = ["-M", "pc"];

/** Times between the markers of one run. */
class LinuxTimes {
  /** Seconds; `boot` is from the start of the VMM to init's first line. */
  readonly seconds = new Map<string, number>();
  /** The same of CPU time of the process that runs the guest. */
  readonly cpuSeconds = new Map<string, number>();
  readonly checks = new Map<string, string>();
  isOver = false;
  #began = performance.now();
  #text = "";
  #started = 0;
  #cpuTime = ownCpuTime;
  #cpuBegan = ownCpuTime();
  #cpuStarted = 0;
  readonly #names: readonly string[];

  constructor(names: readonly string[]) {
    this.#names = names;
  }

  /** The guest runs in a process of its own, which begins now. */
  readonly startedProcess = (cpuTime: CpuClock): void => {
    this.#cpuTime = cpuTime;
    this.#cpuBegan = 0;
  };

  readonly feed = (text: string): void => {
    const lines = (this.#text + text).split(/\r*\n/);
    this.#text = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  };

  #line(line: string): void {
    const now = performance.now();
    const cpu = this.#cpuTime();
    if (line.includes("user space reached")) {
      this.cpuSeconds.set("boot", cpu - this.#cpuBegan);
      this.seconds.set("boot", (now - this.#began) / 1000);
      this.isOver = this.#names.length === 0;
    }
    const [, mark, name, check] = /mkvm-bench (START|END) (\w+) ?(\S*)/.exec(line) ?? [];
    if (mark === "START") {
      this.#started = now;
      this.#cpuStarted = cpu;
    }
    if (mark === "END" && name) {
      this.cpuSeconds.set(name, cpu - this.#cpuStarted);
      this.seconds.set(name, (now - this.#started) / 1000);
      this.checks.set(name, check ?? "");
    }
    if (line.includes("mkvm-bench DONE")) this.isOver = true;
  }
}

function commandLine(names: readonly string[]): string {
  const run = names.length ? `mkvm.run=bench mkvm.bench=${names.join(",")}` : "mkvm.run=poweroff";
  return `console=ttyS0 quiet panic=-1 ${run}`;
}

async function onMkvm(linux: LinuxGuest, names: readonly string[]): Promise<LinuxTimes> {
  const times = new LinuxTimes(names);
  const args = [
    "--kernel",
    linux.kernel,
    "--initrd",
    linux.initrd,
    "--append",
    commandLine(names),
    "--memory",
    `${memoryMib}M`,
  ];
  await runMkvm({ args, onText: times.feed, done: () => times.isOver });
  return times;
}

async function onTcg(linux: LinuxGuest, names: readonly string[], machine: readonly string[]): Promise<LinuxTimes> {
  const times = new LinuxTimes(names);
  const { kernel, initrd } = linux;
  const args = [...machine, "-m", String(memoryMib), "-kernel", kernel, "-initrd", initrd, "-append", commandLine(names)];
  await runTcg(args, times.feed, () => times.isOver, times.startedProcess);
  return times;
}

async function find(context: PartContext): Promise<LinuxGuest | undefined> {
  const linux = await findLinuxGuest({ log: context.progress });
  if (!linux) context.note("Linux was not measured: no kernel could be fetched with the system's package manager");
  return linux;
}

function rowsOf(names: readonly string[], mkvm: readonly LinuxTimes[], tcg: readonly LinuxTimes[]): Row[] {
  return ["boot", ...names].map((name) => {
    const checks = new Set([...mkvm, ...tcg].map((times) => times.checks.get(name)));
    if (checks.size > 1) throw new Error(`Linux ${name}: results differ: ${[...checks].join(", ")}`);
    const samples = (all: readonly LinuxTimes[]) => all.map((times) => times.seconds.get(name) as number);
    const cpu = (all: readonly LinuxTimes[]) => all.map((times) => times.cpuSeconds.get(name) as number);
    const row = {
      what: name === "boot" ? `Linux to init, ${memoryMib} MiB` : `Linux, ${workloads[name] ?? name}`,
      unit: "s",
      mkvm: samples(mkvm),
      peers: tcg.length ? { tcg: samples(tcg) } : {},
      cpuTime: { mkvm: cpu(mkvm), peers: tcg.length ? { tcg: cpu(tcg) } : {} },
    };
    return { ...row, goal: goalFaster(row, "tcg") };
  });
}

async function linuxRows(context: PartContext, names: readonly string[]): Promise<Row[]> {
  const linux = await find(context);
  if (!linux) return [];
  const mkvm: LinuxTimes[] = [];
  const tcg: LinuxTimes[] = [];
  if (!qemuVersion()) context.note(missingPeer.tcg);
  await interleaved(context, "Linux", {
    mkvm: async () => void mkvm.push(await onMkvm(linux, names)),
    ...(qemuVersion() ? { tcg: async () => void tcg.push(await onTcg(linux, names, fastestTcg)) } : {}),
  });
  return rowsOf(names, mkvm, tcg);
}

/** TCG alone, on each of its machines: how `fastestTcg` was found. */
async function tcgMachines(context: PartContext): Promise<Row[]> {
  const linux = await find(context);
  if (!linux || !qemuVersion()) return [];
  const names = Object.keys(workloads);
  const machines = ["pc", "q35"].flatMap((machine) => [
    ["-M", machine],
    ["-M", machine, "-cpu", "max"],
  ]);
  const results = machines.map((): LinuxTimes[] => []);
  await interleaved(
    context,
    "TCG's machines",
    Object.fromEntries(
      machines.map((machine, index) => [
        machine.join(" "),
        async () => {
          const times = await onTcg(linux, names, machine).catch((error: Error) =>
            context.note(`TCG ${machine.join(" ")}: ${error.message}`),
          );
          if (times) results[index]?.push(times);
        },
      ]),
    ),
  );
  return machines.flatMap((machine, index) =>
    (results[index]?.length ? ["boot", ...names] : []).map((name) => ({
      what: `TCG ${machine.join(" ")}: ${name}`,
      unit: "s",
      mkvm: [],
      peers: { tcg: results[index]?.map((times) => times.seconds.get(name) as number) ?? [] },
    })),
  );
}

export const linuxParts: readonly Part[] = [
  {
    name: "linux",
    about: "Linux to its init, a shell loop, md5sum, gzip and forks, against TCG",
    measure: (context) => linuxRows(context, Object.keys(workloads)),
  },
  { name: "linux.boot", about: "", measure: (context) => linuxRows(context, []) },
  ...Object.keys(workloads).map((name): Part => {
    return { name: `linux.${name}`, about: "", measure: (context) => linuxRows(context, [name]) };
  }),
  { name: "linux.tcg-machines", about: "", measure: tcgMachines },
];
