/** One statistic: the definition that descriptors, data block, portable section and reference all come from. */

export type StatisticKind = "cumulative" | "instant" | "peak" | "log-histogram";
export type StatisticUnit = "none" | "seconds" | "boolean";

export interface Row<Name extends string = string> {
  readonly name: Name;
  readonly kind: StatisticKind;
  readonly unit: StatisticUnit;
  /** Values are in 10 ** exponent of the unit. */
  readonly exponent: 0 | -9;
  /** 64-bit values: 1, or the buckets of a histogram. */
  readonly words: number;
  /** Whose name it is. */
  readonly source: "Linux" | "mkvm";
  /** What moves it. */
  readonly counts: string;
  /** Why it stays 0 in every version: what it counts cannot happen here. */
  readonly never?: string;
  /** Why it stays 0 in one of the versions. */
  readonly neverInV1?: string;
  readonly neverInV2?: string;
}

/** Buckets of every histogram, as Linux's halt histograms have (HALT_POLL_HIST_COUNT). */
export const HISTOGRAM_BUCKETS = 32;

type Options = Partial<Pick<Row, "source" | "never" | "neverInV1" | "neverInV2">>;

function row<Name extends string>(
  name: Name,
  kind: StatisticKind,
  unit: StatisticUnit,
  exponent: 0 | -9,
  counts: string,
  options: Options,
): Row<Name> {
  return {
    name,
    kind,
    unit,
    exponent,
    words: kind === "log-histogram" ? HISTOGRAM_BUCKETS : 1,
    source: "Linux",
    counts,
    ...options,
  };
}

/** Grows with each event. */
export const counter = <Name extends string>(name: Name, counts: string, options: Options = {}): Row<Name> =>
  row(name, "cumulative", "none", 0, counts, options);
/** How many there are now. */
export const instant = <Name extends string>(name: Name, counts: string, options: Options = {}): Row<Name> =>
  row(name, "instant", "none", 0, counts, options);
/** Whether it is so now. */
export const flag = <Name extends string>(name: Name, counts: string, options: Options = {}): Row<Name> =>
  row(name, "instant", "boolean", 0, counts, options);
/** The most there have been. */
export const peak = <Name extends string>(name: Name, counts: string, options: Options = {}): Row<Name> =>
  row(name, "peak", "none", 0, counts, options);
/** Time spent, ns. */
export const timeNs = <Name extends string>(name: Name, counts: string, options: Options = {}): Row<Name> =>
  row(name, "cumulative", "seconds", -9, counts, options);
/** Times by power of two, ns: bucket 0 counts zeros, bucket n those from 2 ** (n - 1) up to 2 ** n, the last one all above. */
export const histogramNs = <Name extends string>(name: Name, counts: string, options: Options = {}): Row<Name> =>
  row(name, "log-histogram", "seconds", -9, counts, options);
