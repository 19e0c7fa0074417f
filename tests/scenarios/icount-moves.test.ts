import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { chooseSeed } from "../../packages/hw-x86/test/random.ts";
import { movesOf, randomSchedule } from "./move-schedule.ts";
import { linuxGuest, smpTestGuest, tinyGuest } from "./running-guest.ts";

const SEED = chooseSeed();

interface Run {
  console: string;
  status: number;
  moves: number;
}

/** One run under icount, with the VM moved between the modules at the given instruction counts. */
async function run(
  args: string[],
  moves: readonly { at: number; to: string }[],
  vendor: "intel" | "amd" = "intel",
): Promise<Run> {
  const host = await createHost({ directory: import.meta.dirname, clock: "icount", vendor });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const process = await host.run({ args: [...args, "--digest"], moves });
    const decoder = new TextDecoder();
    let console = "";
    for await (const chunk of process.output) console += decoder.decode(chunk, { stream: true });
    const { status } = await process.exited;
    for (const move of process.moves) expect(move).toMatchObject({ moved: true });
    return { console, status, moves: process.moves.length };
  } finally {
    await host.close();
  }
}

const vendors = ["intel", "amd"] as const;

test.each(vendors)(
  `the tiny guest ends the same with moves at random instructions and without (seed ${SEED}, %s)`,
  async (vendor) => {
    const still = await run(tinyGuest(50), [], vendor);
    expect(still).toMatchObject({ status: 0, console: expect.stringMatching(/mkvm-check-end.*\n.*mkvm-digest/s) });
    const again = await run(tinyGuest(50), [], vendor);
    expect(again.console).toBe(still.console);
    const moved = await run(tinyGuest(50), movesOf(randomSchedule(SEED, 35, 20_000)), vendor);
    expect(moved.moves).toBeGreaterThan(10);
    expect(moved.console).toBe(still.console);
  },
);

test.each(vendors)(
  `four CPUs end the same with moves at random instructions and without (seed ${SEED}, %s)`,
  async (vendor) => {
    const { args, instructions, passed } = smpTestGuest();
    const still = await run(args, [], vendor);
    expect(still).toMatchObject({ status: passed, console: expect.stringContaining("mkvm-digest") });
    const moved = await run(args, movesOf(randomSchedule(SEED, 100, instructions)), vendor);
    expect(moved.moves).toBeGreaterThan(60);
    expect(moved).toMatchObject({ status: passed, console: still.console });
  },
);

/** One run that is saved at instructions, and goes on each time in another host on the other version. */
async function savedRun(args: string[], at: readonly number[], vendor: "intel" | "amd" = "intel"): Promise<Run> {
  const path = join(mkdtempSync(join(tmpdir(), "mkvm-saved-")), "vm");
  const run: Run = { console: "", status: 0, moves: 0 };
  for (let part = 0; part <= at.length; part++) {
    const host = await createHost({ directory: import.meta.dirname, clock: "icount", vendor });
    try {
      const version = 1 + (part % 2);
      await host.insmod(`@mkvm/kvm-v${version}`);
      await host.ln(`/dev/kvm${version}`, "/dev/kvm");
      const next = part < at.length ? { save: { at: at[part]!, path } } : {};
      const process =
        part === 0 ? await host.run({ args: [...args, "--digest"], ...next }) : await host.restore({ path, ...next });
      const decoder = new TextDecoder();
      for await (const chunk of process.output) run.console += decoder.decode(chunk, { stream: true });
      run.status = (await process.exited).status;
    } finally {
      await host.close();
    }
  }
  rmSync(path);
  return run;
}

/** Instructions at which vCPU 1 to 3 have begun, and at which all of them are at work. */
const [savedEarly, savedLate] = [2000, 45_000];

test.each(vendors)(
  `four CPUs that were saved and restored end the same as four that were not (seed ${SEED}, %s)`,
  async (vendor) => {
    const { args, passed } = smpTestGuest();
    const still = await run(args, [], vendor);
    const at = [...randomSchedule(SEED, 3, savedLate - savedEarly)].map((instructions) => savedEarly + instructions);
    const saved = await savedRun(args, at, vendor);
    expect(saved, `saved at ${at.join(", ")}`).toMatchObject({ status: passed, console: still.console });
  },
);

test(`Linux ends the same with moves at random instructions, saved and restored, and without (seed ${SEED})`, {
  timeout: 600_000,
}, async () => {
  const args = await linuxGuest("poweroff");
  if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
  const still = await run(args, []);
  expect(still.console).toContain("mkvm-guest: user space reached");
  const moved = await run(args, movesOf(randomSchedule(SEED, 30, 400_000_000)));
  expect(moved.moves).toBeGreaterThan(10);
  expect(moved.console).toBe(still.console);
  const [at] = randomSchedule(SEED, 1, 400_000_000);
  expect(await savedRun(args, [at!])).toMatchObject({ console: still.console, status: still.status });
});
