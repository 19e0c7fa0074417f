/** What a part of the benchmark is given and gives back. */
import type { Row } from "./row.ts";

export interface PartContext {
  /** Measurements of each engine, which take turns. */
  readonly rounds: number;
  /** For files of this run; removed at its end. */
  readonly folder: string;
  /** Says on the terminal what is going on. */
  progress(text: string): void;
  /** A line below the table: what could not be measured, and why. */
  note(text: string): void;
}

export interface Part {
  name: string;
  /** For `--help`. */
  about: string;
  measure(context: PartContext): Promise<Row[]>;
}

/** Runs `measure` of each engine once a round, first one engine first, then the next, so that drifts of the machine hit all alike. */
export async function interleaved<Name extends string>(
  context: PartContext,
  what: string,
  engines: Readonly<Partial<Record<Name, () => Promise<void>>>>,
): Promise<void> {
  const names = Object.keys(engines) as Name[];
  for (let round = 0; round < context.rounds; round++) {
    for (let turn = 0; turn < names.length; turn++) {
      const name = names[(round + turn) % names.length] as Name;
      context.progress(`${what}: ${name}, round ${round + 1} of ${context.rounds}`);
      await engines[name]?.();
    }
  }
}
