/** The bare-metal timing guests: each workload on mkvm and on the peers. */
import { buildTimingGuest } from "@mkvm/testkit";
import type { CpuClock } from "./cpu-time.ts";
import { type EngineMode, runMkvm } from "./mkvm-run.ts";
import { interleaved, type Part, type PartContext } from "./part.ts";
import { qemuVersion, runTcg } from "./qemu.ts";
import { goalAtLeast, goalFaster, meanRow, type Peer, type Row } from "./row.ts";
import { TimingLines, type WorkloadTime } from "./timing-lines.ts";
import { runV86, v86Version } from "./v86.ts";

const integerWorkloads = ["sieve", "crc", "sort", "sha", "fib", "matrix"];

/** Part of the guest's work that the interpreter alone is given, so that a round takes seconds. */
const INTERPRETER_SHARE = 8;

const tcgArgs = (image: string) => ["-cpu", "max", "-m", "256", "-kernel", image];

async function onMkvm(image: string, engine: EngineMode): Promise<WorkloadTime[]> {
  const lines = new TimingLines();
  const args = ["--kernel", image, "--memory", "64M"];
  await runMkvm({ args, engine, onText: (text) => lines.feed(text), done: () => lines.ended });
  return lines.times;
}

async function onPeer(peer: Peer, image: string): Promise<WorkloadTime[]> {
  const lines = new TimingLines();
  const feed = (text: string) => lines.feed(text);
  const done = () => lines.ended;
  const started = (cpuTime: CpuClock) => {
    lines.cpuTime = cpuTime;
  };
  if (peer === "tcg") await runTcg(tcgArgs(image), feed, done, started);
  else await runV86(image, feed, done, started);
  if (!lines.ended) throw new Error(`the timing guest did not end on ${peer}`);
  return lines.times;
}

/** A row for each workload of a timing guest, over the peers that this machine has. Throws when two engines' checksums differ. */
export async function timeGuest(
  context: PartContext,
  name: string,
  image: string,
  peers: readonly Peer[],
  engine: EngineMode = "hot",
): Promise<Row[]> {
  const results: Record<"mkvm" | Peer, WorkloadTime[][]> = { mkvm: [], tcg: [], v86: [] };
  const installed = peers.filter((peer) => {
    const version = peer === "tcg" ? qemuVersion() : v86Version();
    if (!version) context.note(missingPeer[peer]);
    return version !== undefined;
  });
  await interleaved(context, name, {
    mkvm: async () => void results.mkvm.push(await onMkvm(image, engine)),
    ...Object.fromEntries(installed.map((peer) => [peer, async () => void results[peer].push(await onPeer(peer, image))])),
  });
  return (results.mkvm[0] as WorkloadTime[]).map(({ workload, checksum }, index) => {
    const samples = (times: WorkloadTime[][]) => times.map((round) => round[index]?.seconds ?? Number.NaN);
    const cpuSamples = (times: WorkloadTime[][]) => times.map((round) => round[index]?.cpuSeconds ?? Number.NaN);
    for (const peer of ["mkvm", ...installed] as const) {
      const wrong = results[peer].find((round) => round[index]?.checksum !== checksum);
      if (wrong) throw new Error(`${name} ${workload}: checksum ${checksum} on mkvm, ${wrong[index]?.checksum} on ${peer}`);
    }
    return {
      what: `${name} ${workload}`,
      unit: "s",
      mkvm: samples(results.mkvm),
      peers: Object.fromEntries(installed.map((peer) => [peer, samples(results[peer])])),
      cpuTime: {
        mkvm: cpuSamples(results.mkvm),
        peers: Object.fromEntries(installed.map((peer) => [peer, cpuSamples(results[peer])])),
      },
    };
  });
}

export const missingPeer: Readonly<Record<Peer, string>> = {
  tcg: "QEMU is not installed, so nothing is compared with its TCG: install qemu-system-x86",
  v86: "v86 was not run: it needs the BIOS images of the package seabios",
};

async function guest64(context: PartContext, only?: string): Promise<Row[]> {
  const image = await buildTimingGuest(context.folder, 64, 1, "integer", only);
  const rows = (await timeGuest(context, "guest64", image, ["tcg"])).map((row) => ({ ...row, goal: goalFaster(row, "tcg") }));
  return only ? rows : [...rows, meanRow("guest64", rows, "tcg", 1.5)];
}

async function guest32(context: PartContext, only?: string): Promise<Row[]> {
  const image = await buildTimingGuest(context.folder, 32, 1, "integer", only);
  const rows = await timeGuest(context, "guest32", image, ["tcg", "v86"]);
  return only ? rows : [...rows, meanRow("guest32", rows, "v86", 3), meanRow("guest32", rows, "tcg", 1.5)];
}

async function vector(context: PartContext, program: "float" | "simd", only?: string): Promise<Row[]> {
  const image = await buildTimingGuest(context.folder, 64, 1, program, only);
  const rows = (await timeGuest(context, program, image, ["tcg"])).map((row) => ({ ...row, goal: goalFaster(row, "tcg") }));
  return only ? rows : [...rows, meanRow(program, rows, "tcg", 1)];
}

async function interpreter(context: PartContext): Promise<Row[]> {
  const image = await buildTimingGuest(context.folder, 64, INTERPRETER_SHARE);
  const rates: number[] = [];
  await interleaved(context, "interpreter", {
    mkvm: async () => {
      const lines = new TimingLines();
      const samples: { ms: number; instructions: number }[] = [];
      let sample = async () => {};
      await runMkvm({
        args: ["--kernel", image, "--memory", "64M"],
        engine: "off",
        onText: (text) => {
          lines.feed(text);
          return sample();
        },
        done: () => lines.ended,
        started: (host) => {
          sample = async () => {
            const [process] = await host.ps();
            if (process) samples.push({ ms: performance.now(), instructions: process.retiredInstructions });
          };
        },
      });
      const [first, last] = [samples[0], samples.at(-1)];
      if (!first || !last || first === last) throw new Error("too few samples of retired instructions");
      rates.push((last.instructions - first.instructions) / 1000 / (last.ms - first.ms));
    },
  });
  const unit = "M instructions/s";
  return [{ what: "interpreter alone on guest64", unit, mkvm: rates, peers: {}, goal: goalAtLeast(rates, 100, unit) }];
}

export const timingParts: readonly Part[] = [
  { name: "guest64", about: "the timing guest in 64-bit code, against TCG", measure: guest64 },
  { name: "guest32", about: "the timing guest in 32-bit code, against v86 and TCG", measure: guest32 },
  ...integerWorkloads.flatMap((only): Part[] => [
    { name: `guest64.${only}`, about: "", measure: (context) => guest64(context, only) },
    { name: `guest32.${only}`, about: "", measure: (context) => guest32(context, only) },
  ]),
  { name: "float", about: "scalar floating point, against TCG", measure: (context) => vector(context, "float") },
  { name: "simd", about: "SSE2 on vectors, against TCG", measure: (context) => vector(context, "simd") },
  { name: "interpreter", about: "guest64 without translation", measure: interpreter },
];
