/**
 * Moves a guest between kvm-v1 and kvm-v2 at random instruction boundaries under icount, 10,000 times over many runs, and compares
 * console, exit status and digest of each run with those of a run without moves. A run that differs is shrunk to a schedule of which
 * no move can be left out. `--seed` replays a whole verification, `--at 1,2,3` one schedule.
 */
import { parseArgs } from "node:util";
import { createHost } from "@mkvm/host";
import { movesOf, random, randomSchedule, type Schedule, shrink } from "../tests/scenarios/move-schedule.ts";
import { tinyGuest } from "../tests/scenarios/running-guest.ts";

const { values } = parseArgs({
  options: {
    moves: { type: "string", default: "10000" },
    "per-run": { type: "string", default: "100" },
    seed: { type: "string", default: String(Date.now() % 2 ** 31) },
    at: { type: "string" },
  },
});
const wanted = Number(values.moves);
const perRun = Number(values["per-run"]);
/** The guest ends within about this many instructions. */
const limit = 20_000;

interface Run {
  ending: string;
  moves: number;
  refused: unknown[];
}

async function run(schedule: Schedule): Promise<Run> {
  const host = await createHost({ directory: import.meta.dirname, clock: "icount" });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const process = await host.run({ args: [...tinyGuest(50), "--digest"], moves: movesOf(schedule) });
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

const still = await run([]);
if (!still.ending.includes("mkvm-digest")) throw new Error(`the guest gave no digest without moves: ${still.ending}`);
const differs = ({ ending, refused }: Run) => ending !== still.ending || refused.length > 0;

async function verify(schedule: Schedule): Promise<number> {
  const moved = await run(schedule);
  if (!differs(moved)) return moved.moves;
  console.log(`differs after ${moved.moves} moves; shrinking`);
  const shortest = await shrink(schedule, async (candidate) => differs(await run(candidate)));
  const last = await run(shortest);
  console.log(`without moves:\n${still.ending}\nwith moves:\n${last.ending}`);
  if (last.refused.length) console.log("refused:", last.refused);
  console.log(`replay: pnpm verify:upgrade --at ${shortest.join(",")}`);
  process.exit(1);
}

if (values.at !== undefined) {
  const moves = await verify(values.at.split(",").filter(Boolean).map(Number));
  console.log(`${moves} moves, the same ending`);
} else {
  console.log(`seed ${values.seed}`);
  const seeds = random(Number(values.seed), 2 ** 31);
  let done = 0;
  let runs = 0;
  while (done < wanted) {
    const moves = await verify(randomSchedule(seeds.next().value, Math.min(perRun, wanted - done), limit));
    if (moves === 0 && perRun > 1 && wanted - done > 1) throw new Error("no move came before the guest ended");
    done += moves;
    runs += 1;
  }
  console.log(`${done} moves in ${runs} runs, every one with the same ending`);
}
