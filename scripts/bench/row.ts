/** One line of the table: what was measured, on mkvm and on its peers, and what is to be reached. */
import { geometricMean, interquartileRange, max, median, min } from "simple-statistics";

export type Peer = "tcg" | "v86";
export const peerNames: Readonly<Record<Peer, string>> = { tcg: "QEMU TCG", v86: "v86" };

/** Values of one engine, one for each round, in the order of the rounds. */
export type Samples = readonly number[];

export interface Row {
  what: string;
  /** Of the samples: "s", "ms", "us", "MiB", "%", "x", "M instructions/s". Less is better but for the last two. */
  unit: string;
  /** Empty where only peers are compared. */
  mkvm: Samples;
  peers: Readonly<Partial<Record<Peer, Samples>>>;
  /** CPU time of the same runs, where it is known: what a machine that other work shares distorts less. */
  cpuTime?: Pick<Row, "mkvm" | "peers">;
  /** The or the design's words for it; absent where the figure is only shown. */
  goal?: Goal;
}

export interface Goal {
  text: string;
  /** Undefined when it cannot be known: the peer is not installed. */
  reached: boolean | undefined;
}

export interface Summary {
  median: number;
  min: number;
  max: number;
  /** Quartile 3 less quartile 1. */
  interquartileRange: number;
}

export function summarize(samples: Samples): Summary {
  const all = [...samples];
  return { median: median(all), min: min(all), max: max(all), interquartileRange: interquartileRange(all) };
}

/** How many times faster mkvm is than the peer: ratio of medians of times. Undefined without the peer. */
export function timesFaster(row: Pick<Row, "mkvm" | "peers">, peer: Peer): number | undefined {
  const theirs = row.peers[peer];
  return theirs?.length && row.mkvm.length ? median([...theirs]) / median([...row.mkvm]) : undefined;
}

/** Mean of what `timesFaster` says of rows, geometric. */
export function meanTimesFaster(rows: readonly Pick<Row, "mkvm" | "peers">[], peer: Peer): number | undefined {
  const ratios = rows.map((row) => timesFaster(row, peer));
  return ratios.every((ratio) => ratio !== undefined) && ratios.length > 0 ? geometricMean(ratios) : undefined;
}

// ---- Goals ----

/** At least `factor` times faster than the peer. */
export function goalFaster(row: Pick<Row, "mkvm" | "peers">, peer: Peer, factor = 1): Goal {
  const ratio = timesFaster(row, peer);
  const text = factor === 1 ? `not slower than ${peerNames[peer]}` : `${factor}x faster than ${peerNames[peer]}`;
  return { text, reached: ratio === undefined ? undefined : ratio >= factor };
}

export function goalBelow(samples: Samples, limit: number, unit: string): Goal {
  return { text: `under ${limit} ${unit}`, reached: median([...samples]) < limit };
}

export function goalAtLeast(samples: Samples, limit: number, unit: string): Goal {
  return { text: `at least ${limit} ${unit}`, reached: median([...samples]) >= limit };
}

/** A row that says how many times faster than a peer the rows before it are, as one number. */
export function meanRow(what: string, rows: readonly Row[], peer: Peer, factor: number): Row {
  const mean = meanTimesFaster(rows, peer);
  const cpuTimes = rows.flatMap((row) => row.cpuTime ?? []);
  const cpuMean = cpuTimes.length === rows.length ? meanTimesFaster(cpuTimes, peer) : undefined;
  return {
    what: `${what}: geometric mean against ${peerNames[peer]}`,
    unit: "x",
    mkvm: mean === undefined ? [] : [mean],
    peers: {},
    ...(cpuMean === undefined ? {} : { cpuTime: { mkvm: [cpuMean], peers: {} } }),
    goal: { text: `${factor}x faster`, reached: mean === undefined ? undefined : mean >= factor },
  };
}
