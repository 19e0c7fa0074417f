/** Whether the size of a guest makes its instructions dearer. */
import { buildTimingGuest } from "@mkvm/testkit";
import { median } from "simple-statistics";
import { runMkvm } from "./mkvm-run.ts";
import { interleaved, type Part, type PartContext } from "./part.ts";
import type { Row } from "./row.ts";
import { TimingLines } from "./timing-lines.ts";

const SIZES_MIB = [64, 256, 1024, 2048] as const;
/** Part of the timing guest's work. */
const SHARE = 8;
/** The largest guest may take so much longer than the smallest: what one machine differs by from run to run. */
const FLAT = 1.1;

async function growth(context: PartContext): Promise<Row[]> {
  const image = await buildTimingGuest(context.folder, 64, SHARE);
  const seconds = new Map<number, number[]>(SIZES_MIB.map((size) => [size, []]));
  const run = (size: number) => async () => {
    const lines = new TimingLines();
    const args = ["--kernel", image, "--memory", `${size}M`];
    await runMkvm({ args, onText: (text) => lines.feed(text), done: () => lines.ended });
    seconds.get(size)?.push(lines.times.reduce((sum, time) => sum + time.seconds, 0));
  };
  const engines = Object.fromEntries(SIZES_MIB.map((size) => [`${size} MiB`, run(size)]));
  await interleaved(context, "growth", engines);
  const samples = (size: number): number[] => seconds.get(size) as number[];
  const rows = SIZES_MIB.map((size) => {
    return { what: `guest64, 1/${SHARE} of its rounds, ${size} MiB of RAM`, unit: "s", mkvm: samples(size), peers: {} };
  });
  const ratio = median(samples(2048)) / median(samples(64));
  const goal = { text: `flat: at most ${FLAT}x`, reached: ratio <= FLAT };
  return [...rows, { what: "time of the same instructions, 2 GiB over 64 MiB", unit: "x", mkvm: [ratio], peers: {}, goal }];
}

export const growthParts: readonly Part[] = [
  { name: "growth", about: "the same work in guests of 64 MiB to 2 GiB", measure: growth },
];
