/**
 * `pnpm verify:fuzz`: the fuzzers of test/fuzz for as long as it is to be, each on a thread of its own that is watched: a case that does
 * not come back is told by its seed. Run at the lowest priority.
 *
 *   --minutes N   for each fuzzer (10)     --seed S   the first case (of the time)     --only NAME   one of the fuzzers
 */
import { setPriority } from "node:os";
import { parseArgs } from "node:util";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { VmcbFuzzer, VmcsFuzzer } from "../test/fuzz/entry-fuzz.ts";
import { GuestFuzzer } from "../test/fuzz/guest-fuzz.ts";

/** A case takes milliseconds; one that takes so long never ends. */
const HANGS_AFTER_MS = 60_000;
const MOST_FAILURES = 20;
/** After so many cases what engines have cached is thrown away, as new guests would find them. */
const CASES_A_MACHINE = 2000;

interface Fuzzer {
  runCase(seed: number): unknown;
}
const FUZZERS: Readonly<Record<string, () => Fuzzer>> = {
  "guests-intel": () => new GuestFuzzer("intel"),
  "guests-amd": () => new GuestFuzzer("amd"),
  vmcs: () => new VmcsFuzzer(),
  vmcb: () => new VmcbFuzzer(),
};

interface Job {
  name: string;
  seed: number;
  endMs: number;
}
type Message = { at: number } | { failed: string } | { cases: number };

function fuzz({ name, seed, endMs }: Job): void {
  const say = (message: Message): void => parentPort?.postMessage(message);
  const make = FUZZERS[name] as () => Fuzzer;
  let fuzzer = make();
  let cases = 0;
  let failures = 0;
  while (Date.now() < endMs && failures < MOST_FAILURES) {
    const at = (seed + cases++) >>> 0;
    say({ at });
    try {
      fuzzer.runCase(at);
    } catch (error) {
      say({ failed: error instanceof Error ? error.message : String(error) });
      failures++;
      fuzzer = make();
    }
    if (cases % CASES_A_MACHINE === 0) fuzzer = make();
  }
  say({ cases });
}

/** Failures of one fuzzer. */
function watch(job: Job): Promise<number> {
  return new Promise((resolve) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: job });
    let failures = 0;
    let at = job.seed;
    let watchdog: NodeJS.Timeout | undefined;
    const end = (text: string): void => {
      clearTimeout(watchdog);
      console.log(`${job.name}: ${text}`);
      void worker.terminate();
      resolve(failures);
    };
    const rewind = (): void => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => {
        failures++;
        end(`seed ${at} never came back`);
      }, HANGS_AFTER_MS);
    };
    worker.on("message", (message: Message) => {
      rewind();
      if ("at" in message) at = message.at;
      else if ("failed" in message) {
        failures++;
        console.log(`${job.name}: ${message.failed}`);
      } else end(`${message.cases} cases from seed ${job.seed}, ${failures} failed`);
    });
    worker.on("error", (error) => {
      failures++;
      end(`the thread ended at seed ${at}: ${error.message}`);
    });
    rewind();
  });
}

if (!isMainThread) fuzz(workerData as Job);
else {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "10" },
      seed: { type: "string", default: String(Date.now() % 2 ** 31) },
      only: { type: "string" },
    },
  });
  setPriority(19);
  const names = Object.keys(FUZZERS).filter((name) => values.only === undefined || values.only === name);
  if (names.length === 0) {
    console.error(`No fuzzer is called ${values.only}; they are ${Object.keys(FUZZERS).join(", ")}.`);
    process.exit(2);
  }
  let failures = 0;
  for (const name of names)
    failures += await watch({ name, seed: Number(values.seed) >>> 0, endMs: Date.now() + Number(values.minutes) * 60_000 });
  process.exitCode = failures === 0 ? 0 : 1;
}
