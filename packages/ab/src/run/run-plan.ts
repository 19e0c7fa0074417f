/** A plan's runs: warm-up, then rounds in random order. */
import { messageOf } from "../errors.ts";
import { type ArmId, armIds, type Plan } from "../plan/schema.ts";
import { Bench, type Measured } from "./bench.ts";
import { type Metrics, moveMetrics } from "./metrics.ts";
import { createRandom, shuffled } from "./random.ts";

export interface Round {
  arm: ArmId;
  /** From 1, for each arm. */
  round: number;
  /** Logical CPU. */
  cpu: number;
  metrics: Metrics;
}

export interface ArmInfo {
  package: string;
  version: string;
  parameters: Record<string, unknown>;
}

export interface Runs {
  arms: Record<ArmId, ArmInfo>;
  /** In the order in which they were made. */
  rounds: Round[];
  /** Why it ended early. */
  failure?: { arm: ArmId; round: number | "warm-up"; reason: string };
  interrupted: boolean;
}

export interface RunControl {
  seed: number;
  signal: AbortSignal;
  /** Called after each run; warm-up counts. */
  onProgress?(done: number, total: number, next: string): void;
  /** Called once with the names of all metrics, before the first counted round: may throw to end it all. */
  onMetrics?(names: readonly string[]): void;
  /** Whether the rounds so far say all that more of them could: asked when the plan allows more. */
  isPrecise?(rounds: readonly Round[]): boolean;
}

/** By how much the rounds grow before they are looked at again. */
const growth = 1.25;

/**
 * Makes all runs, or those up to the first that fails.
 * @throws AbError when an arm cannot be loaded, or what `onMetrics` throws; hosts are closed in any case
 */
export async function runPlan(plan: Plan, directory: string, control: RunControl): Promise<Runs> {
  const bench = await Bench.create(plan, directory);
  try {
    const infoOf = (id: ArmId): ArmInfo => {
      const { package: name, version, parameters } = bench.modules[id];
      return { package: name, version, parameters };
    };
    const runs: Runs = { arms: { a: infoOf("a"), b: infoOf("b") }, rounds: [], interrupted: false };
    await new Series(bench, plan, control, runs).make();
    return runs;
  } finally {
    await bench.close();
  }
}

class Series {
  readonly #bench: Bench;
  readonly #plan: Plan;
  readonly #control: RunControl;
  readonly #runs: Runs;
  #total: number;
  #done = 0;
  #named = false;
  readonly #moveAt: Record<ArmId, number[]> = { a: [], b: [] };

  constructor(bench: Bench, plan: Plan, control: RunControl, runs: Runs) {
    this.#bench = bench;
    this.#plan = plan;
    this.#control = control;
    this.#runs = runs;
    this.#total = 2 * (plan.rounds + plan.warmUp);
  }

  async make(): Promise<void> {
    const random = createRandom(this.#control.seed);
    const { warmUp } = this.#plan;
    let wanted = this.#plan.rounds;
    for (let index = 0; index < warmUp + wanted; index++) {
      const round = index < warmUp ? ("warm-up" as const) : index - warmUp + 1;
      // Each round has both arms, in an order of its own: a drift of the machine meets both alike.
      const order = shuffled(armIds, random);
      const measured = await this.#round(order, round);
      if (!measured) return;
      if (!this.#named) {
        this.#named = true;
        const names = Object.values(measured).flatMap(({ metrics }) => Object.keys(metrics));
        this.#control.onMetrics?.([...new Set([...names, ...(this.#plan.moves ? moveMetrics : [])])]);
      }
      if (round === "warm-up") this.#placeMoves(measured);
      else {
        for (const [position, arm] of order.entries())
          this.#runs.rounds.push({ arm, round, cpu: this.#cpuOf(position), metrics: measured[arm].metrics });
      }
      if (round === wanted) wanted = this.#extended(wanted);
      this.#total = 2 * (wanted + warmUp);
    }
  }

  #extended(rounds: number): number {
    const { maxRounds = rounds } = this.#plan;
    if (rounds >= maxRounds || this.#control.isPrecise?.(this.#runs.rounds)) return rounds;
    return Math.min(maxRounds, Math.ceil(rounds * growth));
  }

  #cpuOf(position: number): number {
    return this.#plan.schedule === "concurrent" ? position : 0;
  }

  /** Both arms once; undefined when it all ends here. */
  async #round(order: readonly ArmId[], round: number | "warm-up"): Promise<Record<ArmId, Measured> | undefined> {
    const found: Partial<Record<ArmId, Measured>> = {};
    const one = async (arm: ArmId, position: number) => {
      const moveAt = round === "warm-up" ? [] : this.#moveAt[arm];
      try {
        found[arm] = await this.#bench.run(arm, this.#cpuOf(position), this.#control.signal, moveAt);
        this.#control.onProgress?.(++this.#done, this.#total, `${round === "warm-up" ? round : `round ${round}`}, arm ${arm}`);
      } catch (thrown) {
        if (this.#control.signal.aborted) this.#runs.interrupted = true;
        else this.#runs.failure ??= { arm, round, reason: reasonOf(thrown) };
      }
    };
    if (this.#plan.schedule === "concurrent") await Promise.all(order.map(one));
    else
      for (const [position, arm] of order.entries())
        if (!this.#runs.failure && !this.#runs.interrupted) await one(arm, position);
    return found.a && found.b ? (found as Record<ArmId, Measured>) : undefined;
  }

  #placeMoves(measured: Record<ArmId, Measured>): void {
    for (const arm of armIds) {
      const { startInstructions, endInstructions } = measured[arm];
      const at = (part: number) => Math.round(startInstructions + part * (endInstructions - startInstructions));
      this.#moveAt[arm] = (this.#plan.moves ?? []).map(at);
    }
  }
}

function reasonOf(thrown: unknown): string {
  return messageOf(thrown);
}
