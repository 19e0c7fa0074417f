import { mkdtempSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { buildTimingGuest, checkGuest, findLinuxGuest } from "@mkvm/testkit";
import { qemuVersion, runTcg, TimingLines, type WorkloadTime } from "./peers.ts";

export interface Figure {
  what: string;
  mkvm: string;
  /** The same on QEMU TCG in the same run, where it makes sense and QEMU is installed. */
  peer: string;
  goal: string;
  /** Numbers behind the figure, for the JSON. */
  data: unknown;
}

const folder = mkdtempSync(join(tmpdir(), "mkvm-bench-"));

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** Part of the timing guest's work that an interpreter does in seconds. */
const SHARE = 8;

/** The timing guest on the interpreter alone, or with hot code translated, and on TCG: instructions a second, and each workload's time. */
export async function engineRate(bits: 32 | 64, engine: "off" | "hot", rounds: number): Promise<Figure[]> {
  const name = engine === "off" ? "interpreter alone" : "hot code translated";
  const image = await buildTimingGuest(folder, bits, SHARE);
  const own: WorkloadTime[][] = [];
  const rates: number[] = [];
  const peer: WorkloadTime[][] = [];
  for (let round = 0; round < rounds; round++) {
    const host = await createHost({ directory: process.cwd(), engine });
    await host.insmod("@mkvm/kvm-v1");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const lines = new TimingLines();
    const run = await host.run({ args: ["--kernel", image, "--memory", "64M"] });
    const decoder = new TextDecoder();
    const samples: { ms: number; instructions: number }[] = [];
    for await (const chunk of run.output) {
      lines.feed(decoder.decode(chunk, { stream: true }));
      const [process] = await host.ps();
      if (process) samples.push({ ms: performance.now(), instructions: process.retiredInstructions });
    }
    const exit = await run.exited;
    if (!lines.ended) throw new Error(`the timing guest did not end on mkvm: ${exit.message ?? exit.status}`);
    const [first, last] = [samples[0], samples.at(-1)!];
    rates.push((last.instructions - first.instructions) / 1000 / (last.ms - first.ms));
    own.push(lines.times);
    await host.close();
    if (qemuVersion()) {
      const theirs = new TimingLines();
      await runTcg(
        ["-cpu", "max", "-m", "256", "-kernel", image],
        (text) => theirs.feed(text),
        () => theirs.ended,
      );
      peer.push(theirs.times);
    }
  }
  const rows: Figure[] = own[0].map(({ workload, checksum }, index) => {
    const mine = median(own.map((times) => times[index].seconds));
    const theirs = peer.length ? median(peer.map((times) => times[index].seconds)) : undefined;
    if (peer.length && peer[0][index].checksum !== checksum)
      throw new Error(`${workload}: checksum ${checksum}, TCG says ${peer[0][index].checksum}`);
    return {
      what: `guest${bits} ${workload}, ${name}, 1/${SHARE} of its rounds`,
      mkvm: `${mine.toFixed(2)} s`,
      peer: theirs === undefined ? "" : `${theirs.toFixed(3)} s`,
      goal: "",
      data: { mkvm: own.map((times) => times[index].seconds), tcg: peer.map((times) => times[index].seconds) },
    };
  });
  const rate = median(rates);
  return [
    {
      what: `${name} on guest${bits}, whole run`,
      mkvm: `${rate.toFixed(0)} M instructions/s`,
      peer: "",
      goal: "printed",
      data: rates,
    },
    ...rows,
  ];
}

/** From the start of the VMM to init's first line, wall clock. */
export async function linuxBoot(rounds: number): Promise<Figure[]> {
  const linux = await findLinuxGuest({ log: console.error });
  if (!linux) return [];
  const append = "console=ttyS0 quiet panic=-1 mkvm.run=poweroff";
  const reached = "user space reached";
  const own: number[] = [];
  const peer: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const host = await createHost({ directory: process.cwd(), engine: "off" });
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm2", "/dev/kvm");
    let began = performance.now();
    const run = await host.run({
      args: ["--kernel", linux.kernel, "--initrd", linux.initrd, "--append", append, "--memory", "512M"],
    });
    let text = "";
    for await (const chunk of run.output) {
      text += new TextDecoder().decode(chunk);
      if (text.includes(reached)) break;
    }
    if (!text.includes(reached)) throw new Error(`Linux did not reach user space: ${text.slice(-500)}`);
    own.push((performance.now() - began) / 1000);
    await host.close();
    if (!qemuVersion()) continue;
    began = performance.now();
    let theirs = "";
    const args = ["-cpu", "max", "-m", "512", "-kernel", linux.kernel, "-initrd", linux.initrd, "-append", append];
    await runTcg(
      args,
      (part) => {
        theirs += part;
      },
      () => theirs.includes(reached),
    );
    peer.push((performance.now() - began) / 1000);
  }
  return [
    {
      what: "Debian's cloud kernel to init, interpreter alone, 512 MiB",
      mkvm: `${median(own).toFixed(1)} s`,
      peer: peer.length ? `${median(peer).toFixed(1)} s` : "",
      goal: "under 60 s",
      data: { mkvm: own, tcg: peer },
    },
  ];
}

/** Moves of a running VM with 512 MiB between v1 and v2: time from the request that stops it to the thaw. */
export async function blackout(moves: number): Promise<Figure[]> {
  const image = join(folder, "check-guest.bin");
  await writeFile(image, checkGuest());
  const host = await createHost({ directory: process.cwd() });
  await host.insmod("@mkvm/kvm-v1");
  await host.insmod("@mkvm/kvm-v2");
  await host.ln("/dev/kvm1", "/dev/kvm");
  const run = await host.run({ args: ["--kernel", image, "--format", "flat64", "--memory", "512M"] });
  const times: number[] = [];
  for (let move = 0; move < moves; move++) {
    const [report] = await host.upgrade({ pid: run.pid, to: move % 2 ? "kvm1" : "kvm2" });
    if (!report.moved) throw new Error(`move ${move} failed at ${report.failed?.step}: ${report.failed?.reason}`);
    times.push(report.blackoutUs / 1000);
  }
  await host.close();
  const sorted = [...times].sort((a, b) => a - b);
  const p99 = sorted[Math.floor(sorted.length * 0.99)];
  return [
    {
      what: `blackout of a move, 512 MiB, median of ${moves}`,
      mkvm: `${median(times).toFixed(2)} ms`,
      peer: "",
      goal: "under 5 ms",
      data: times,
    },
    { what: "the same, 99th percentile", mkvm: `${p99.toFixed(2)} ms`, peer: "", goal: "", data: p99 },
  ];
}

/** Growth of the process over `rounds` of insmod and rmmod, after a warm-up. */
export async function moduleChurn(rounds: number): Promise<Figure[]> {
  const host = await createHost({ directory: process.cwd() });
  const cycle = async () => {
    await host.insmod("@mkvm/kvm-v1");
    await host.rmmod("kvm1");
  };
  for (let round = 0; round < 50; round++) await cycle();
  const before = process.memoryUsage().rss;
  const began = performance.now();
  for (let round = 0; round < rounds; round++) await cycle();
  const each = (performance.now() - began) / rounds;
  const grown = (process.memoryUsage().rss - before) / (1 << 20);
  await host.close();
  return [
    {
      what: `insmod and rmmod, ${rounds} times: growth`,
      mkvm: `${grown.toFixed(1)} MiB`,
      peer: "",
      goal: "under 20 MiB",
      data: grown,
    },
    { what: "insmod and rmmod, each", mkvm: `${each.toFixed(2)} ms`, peer: "", goal: "", data: each },
  ];
}
