/**
 * Wild guests on the interpreter and on translated code: both must come back, within the time they were given, with the same exits, the
 * same registers and the same memory. What throws, differs or stays for ever names the seed that shows it.
 */
import { seededRandom } from "../random.ts";
import { extrasOf, type Mode, makeGuest } from "./guest-image.ts";
import { type EngineChoice, type GuestMachine, SvmMachine, VmxMachine } from "./guest-machines.ts";

export type Vendor = "intel" | "amd";

const MOST_EXITS = 30;
/** The engines that are compared, the interpreter first. */
const ENGINES: readonly EngineChoice[] = [
  { translate: "off" },
  // Nested paging of five levels must be the same to the guest
  { translate: "always", pagingLevels: 5 },
  { translate: "hot", hotEntries: 12, sweepBytes: 2048 },
];

export interface CaseOptions {
  /** Else the seed chooses. */
  mode?: Mode;
  /** Instructions; to find where a case goes wrong. */
  budget?: number;
  /** Without what came to the machine later, so that a seed of before is what it was. */
  plain?: boolean;
}

export class GuestFuzzer {
  readonly #machines: readonly GuestMachine[];

  constructor(vendor: Vendor, engines: readonly EngineChoice[] = ENGINES) {
    this.#machines = engines.map((choice) => (vendor === "intel" ? new VmxMachine(choice) : new SvmMachine(choice)));
  }

  /** One guest; what it did, line by line. Throws when the machines disagree or one fails. */
  runCase(seed: number, options: CaseOptions = {}): string[] {
    const traces = this.#machines.map((machine, i) => this.#runOn(machine, ENGINES[i]?.translate ?? "", seed, options));
    const [first] = traces as [string[], ...string[][]];
    traces.forEach((trace, i) => {
      const at = first.findIndex((line, index) => trace[index] !== line);
      if (at < 0 && trace.length === first.length) return;
      const index = at < 0 ? first.length : at;
      throw new Error(
        `seed ${seed}: engines off and ${ENGINES[i]?.translate} differ in step ${index}, after ${first[index - 1]?.slice(0, 200)}:\n${firstDifference(first[index] ?? "nothing", trace[index] ?? "nothing")}`,
      );
    });
    return first;
  }

  #runOn(machine: GuestMachine, engine: string, seed: number, options: CaseOptions): string[] {
    const random = seededRandom(seed);
    const setup = makeGuest(random, options.mode, options.plain === true ? undefined : extrasOf(seed));
    const chosen = 20 + random.below(random.oneIn(4) ? 6000 : 600);
    const budget = options.budget ?? chosen;
    const trace = [`${setup.mode} for ${budget}`];
    try {
      machine.begin(setup);
      const retired = machine.cpu.retiredInstructions();
      for (let exits = 0; exits < MOST_EXITS; exits++) {
        const left = budget - (machine.cpu.retiredInstructions() - retired);
        if (left <= 0) break;
        const { what, isOver } = machine.enter(left);
        const after = what.replace(/after \d+$/, `after ${machine.cpu.retiredInstructions() - retired}`);
        trace.push(after);
        if (isOver) break;
        machine.react(random);
      }
      const over = machine.cpu.retiredInstructions() - retired - budget;
      // A shadow lasts for one instruction past the end of time, and accesses to a virtualized APIC take none of it
      if (over > 1 && setup.extras.apic === undefined) throw new Error(`${over} instructions more than were granted`);
      trace.push(machine.describe());
      return trace;
    } catch (error) {
      throw new Error(
        `seed ${seed}, engine ${engine}, after ${trace.slice(-3).join("; ")}: ${error instanceof Error ? error.message : error}`,
        { cause: error },
      );
    }
  }
}

function firstDifference(a: string, b: string): string {
  const linesA = a.split("\n");
  const linesB = b.split("\n");
  if (linesA.length < 3) return `${a}\n${b}`;
  const differing = linesA.flatMap((line, i) => (line === linesB[i] ? [] : [`  ${line}\n  ${linesB[i]}`]));
  return differing.slice(0, 4).join("\n");
}
