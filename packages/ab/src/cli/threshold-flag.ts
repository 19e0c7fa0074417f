import { AbError, ExitStatus } from "../errors.ts";

/** "exits:+5%", "kernel_memory:+65536", "throughput:-3%". @throws AbError */
export function parseThreshold(word: string): object {
  const match = /^(?<metric>.+):(?<sign>[+-])(?<amount>\d+(?:\.\d+)?)(?<percent>%?)$/.exec(word)?.groups;
  if (!match) {
    throw new AbError(ExitStatus.usage, `--threshold ${word}: write metric:+N% or metric:+N, with - where lower is worse`);
  }
  const { metric, sign, amount, percent } = match;
  return { metric, worse: sign === "+" ? "higher" : "lower", [percent ? "percent" : "absolute"]: Number(amount) };
}
