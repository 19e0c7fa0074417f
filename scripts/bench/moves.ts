/** What moving a VM between modules and loading modules cost. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { checkGuest } from "@mkvm/testkit";
import { quantile } from "simple-statistics";
import type { Part, PartContext } from "./part.ts";
import { goalBelow, type Row } from "./row.ts";

const MOVES = 200;
const LOADS = 1000;
/** Loads before memory is looked at first. */
const WARM_UP_LOADS = 50;

/** Moves of a running VM with 512 MiB between v1 and v2: time from the request that stops it to the thaw. */
async function blackout(context: PartContext): Promise<Row[]> {
  const image = join(context.folder, "check-guest.bin");
  await writeFile(image, checkGuest());
  const host = await createHost({ directory: process.cwd() });
  const times: number[] = [];
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const run = await host.run({ args: ["--kernel", image, "--format", "flat64", "--memory", "512M"] });
    // The guest runs once it has said something
    for await (const _ of run.output) break;
    for (let move = 0; move < MOVES; move++) {
      if (move % 20 === 0) context.progress(`blackout: move ${move} of ${MOVES}`);
      const [report] = await host.upgrade({ pid: run.pid, to: move % 2 ? "kvm1" : "kvm2" });
      if (!report?.moved) throw new Error(`move ${move} failed at ${report?.failed?.step}: ${report?.failed?.reason}`);
      times.push(report.blackoutUs / 1000);
    }
  } finally {
    await host.close();
  }
  return [
    {
      what: `blackout of a move, 512 MiB, ${MOVES} moves`,
      unit: "ms",
      mkvm: times,
      peers: {},
      goal: goalBelow(times, 5, "ms"),
    },
    { what: "the same, 99th percentile", unit: "ms", mkvm: [quantile(times, 0.99)], peers: {} },
  ];
}

/** Growth of the process over insmod and rmmod, after a warm-up. */
async function moduleChurn(context: PartContext): Promise<Row[]> {
  const host = await createHost({ directory: process.cwd() });
  const cycle = async () => {
    await host.insmod("@mkvm/kvm-v1");
    await host.rmmod("kvm1");
  };
  try {
    context.progress(`insmod and rmmod, ${LOADS} times`);
    for (let round = 0; round < WARM_UP_LOADS; round++) await cycle();
    const before = process.memoryUsage().rss;
    const each: number[] = [];
    for (let round = 0; round < LOADS; round++) {
      const began = performance.now();
      await cycle();
      each.push(performance.now() - began);
    }
    const grown = [(process.memoryUsage().rss - before) / (1 << 20)];
    return [
      {
        what: `insmod and rmmod, ${LOADS} times: growth`,
        unit: "MiB",
        mkvm: grown,
        peers: {},
        goal: goalBelow(grown, 20, "MiB"),
      },
      { what: "insmod and rmmod, each", unit: "ms", mkvm: each, peers: {} },
    ];
  } finally {
    await host.close();
  }
}

export const moveParts: readonly Part[] = [
  { name: "blackout", about: "moves of a running VM between modules", measure: blackout },
  { name: "modules", about: "loading and unloading a module", measure: moduleChurn },
];
