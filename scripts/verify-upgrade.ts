/**
 * Moves guests between kvm-v1 and kvm-v2 at random instruction boundaries under icount, 10,000 times over many runs, and compares
 * console, exit status and digest of each run with those of a run without moves: the tiny guest, the SMP guest (INIT and SIPI,
 * pending IPIs, NMIs, halted CPUs) and Linux with four CPUs, on machines of both vendors. A run that differs is shrunk to a schedule
 * of which no move can be left out. `--guest` and `--vendor` choose, `--seed` replays a whole verification, `--at 1,2,3` one schedule.
 */
import { parseArgs } from "node:util";
import { createHost } from "@mkvm/host";
import { movesOf, random, randomSchedule, type Schedule, shrink } from "../tests/scenarios/move-schedule.ts";
import { linuxGuest, smpTestGuest, tinyGuest } from "../tests/scenarios/running-guest.ts";

const guests = ["tiny", "smp", "linux"] as const;
const vendors = ["intel", "amd"] as const;
type Guest = (typeof guests)[number];
type Vendor = (typeof vendors)[number];

const { values } = parseArgs({
  options: {
    moves: { type: "string", default: "10000" },
    "per-run": { type: "string", default: "100" },
    seed: { type: "string", default: String(Date.now() % 2 ** 31) },
    guest: { type: "string", multiple: true, default: [...guests] },
    vendor: { type: "string", multiple: true, default: [...vendors] },
    at: { type: "string" },
  },
});
const wanted = Number(values.moves);
const perRun = Number(values["per-run"]);
const chosen = <T extends string>(option: string, known: readonly T[], given: string[]): T[] =>
  given.map((word) => {
    const found = known.find((each) => each === word);
    if (found === undefined) throw new Error(`--${option} ${word}: one of ${known.join(", ")}`);
    return found;
  });

interface Scenario {
  guest: Guest;
  vendor: Vendor;
  args: string[];
  /** The guest ends within about this many instructions. */
  limit: number;
  /** Of all moves. */
  share: number;
}

/** Arguments, instructions, and moves compared with those of others: a boot of Linux takes as long as many runs of tiny guests. */
async function argumentsOf(guest: Guest): Promise<{ args: string[]; limit: number; share: number } | undefined> {
  if (guest === "tiny") return { args: tinyGuest(50), limit: 20_000, share: 10 };
  if (guest === "smp") return { args: smpTestGuest().args, limit: smpTestGuest().instructions, share: 10 };
  const args = await linuxGuest("poweroff");
  return args && { args: [...args, "--cpus", "4"], limit: 500_000_000, share: 1 };
}

interface Run {
  ending: string;
  moves: number;
  refused: unknown[];
}

async function run({ vendor, args }: Scenario, schedule: Schedule): Promise<Run> {
  const host = await createHost({ directory: import.meta.dirname, clock: "icount", vendor });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const process = await host.run({ args: [...args, "--digest"], moves: movesOf(schedule) });
    const decoder = new TextDecoder();
    let console = "";
    for await (const chunk of process.output) console += decoder.decode(chunk, { stream: true });
    const { status } = await process.exited;
    return {
      ending: `${console}\nstatus ${status}`,
      moves: process.moves.length,
      refused: process.moves.filter((move) => !move.moved),
    };
  } finally {
    await host.close();
  }
}

/** How many moves of the schedule came before the guest's end; ends the process when they made a difference. */
async function verify(scenario: Scenario, still: Run, schedule: Schedule): Promise<number> {
  const differs = ({ ending, refused }: Run) => ending !== still.ending || refused.length > 0;
  const moved = await run(scenario, schedule);
  if (!differs(moved)) return moved.moves;
  console.log(`differs after ${moved.moves} moves; shrinking`);
  const shortest = await shrink(schedule, async (candidate) => differs(await run(scenario, candidate)));
  const last = await run(scenario, shortest);
  console.log(`without moves:\n${still.ending}\nwith moves:\n${last.ending}`);
  if (last.refused.length) console.log("refused:", last.refused);
  const { guest, vendor } = scenario;
  console.log(`replay: pnpm verify:upgrade --guest ${guest} --vendor ${vendor} --at ${shortest.join(",")}`);
  process.exit(1);
}

const scenarios: Scenario[] = [];
for (const guest of chosen("guest", guests, values.guest)) {
  const found = await argumentsOf(guest);
  if (found === undefined) console.log(`no ${guest} here: run on Debian, or fill the cache folder`);
  else for (const vendor of chosen("vendor", vendors, values.vendor)) scenarios.push({ guest, vendor, ...found });
}
if (scenarios.length === 0) throw new Error("there is no guest to move");
const shares = scenarios.reduce((sum, { share }) => sum + share, 0);
if (values.at === undefined) console.log(`seed ${values.seed}`);
const seeds = random(Number(values.seed), 2 ** 31);
for (const scenario of scenarios) {
  const name = `${scenario.guest}, ${scenario.vendor}`;
  const still = await run(scenario, []);
  if (!still.ending.includes("mkvm-digest")) throw new Error(`${name}: no digest without moves: ${still.ending}`);
  if (values.at !== undefined) {
    const moves = await verify(scenario, still, values.at.split(",").filter(Boolean).map(Number));
    console.log(`${name}: ${moves} moves, the same ending`);
    continue;
  }
  const goal = Math.ceil((wanted * scenario.share) / shares);
  const began = performance.now();
  let done = 0;
  let runs = 0;
  while (done < goal) {
    const count = Math.min(perRun, goal - done);
    const moves = await verify(scenario, still, randomSchedule(seeds.next().value, count, scenario.limit));
    if (moves === 0 && count > 1) throw new Error(`${name}: no move came before the guest ended`);
    done += moves;
    runs += 1;
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${name}: ${done} of ${goal} moves`);
  }
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  const seconds = Math.round((performance.now() - began) / 1000);
  console.log(`${name}: ${done} moves in ${runs} runs, every one with the same ending (${seconds} s)`);
}
