import reports from "junit-report-builder";
import { formatP, formatPercent, formatValue } from "./format.ts";
import type { Result, ResultComparison } from "./result.ts";
import { armText } from "./table.ts";

/** JUnit XML: a case for each judged metric; regressed is a failure, inconclusive is skipped, an arm that failed is an error. */
export function junitXml(result: Result): string {
  const builder = reports.newBuilder();
  const suite = builder.testSuite().name(result.name).timestamp(new Date(result.date));
  suite.property("armA", armText(result.arms.a)).property("armB", armText(result.arms.b));
  suite.property("seed", String(result.seed)).property("clock", result.clock);
  suite.property("complete", String(result.complete));
  const className = `mkvm.ab.${result.kind}`;
  for (const comparison of result.comparisons) {
    if (comparison.verdict === undefined) continue;
    const testCase = suite.testCase().className(className).name(comparison.metric);
    const text = sentence(comparison);
    testCase.standardOutput(text);
    if (comparison.verdict === "regressed") testCase.failure(text, "regressed");
    if (comparison.verdict === "inconclusive") testCase.skipped();
  }
  const { failure } = result;
  if (failure) {
    suite
      .testCase()
      .className(className)
      .name(`arm ${failure.arm} runs`)
      .error(`round ${failure.round}: ${failure.reason}`, "failed");
  } else if (result.interrupted) {
    suite.testCase().className(className).name("all rounds").error("interrupted", "interrupted");
  }
  return builder.build();
}

/** "exits: 100 -> 106, +6.00 % (+5.10 % .. +6.80 %), p 0.0002, regressed". */
export function sentence(comparison: ResultComparison): string {
  const { metric, unit, a, b, percent, percentInterval, pAdjusted, verdict } = comparison;
  const change = percent === undefined ? formatValue(comparison.shift, unit) : formatPercent(percent);
  const interval = percentInterval ? ` (${percentInterval.map(formatPercent).join(" .. ")})` : "";
  const p = pAdjusted === undefined ? "" : `, p ${formatP(pAdjusted)}`;
  return `${metric}: ${formatValue(a.median, unit)} -> ${formatValue(b.median, unit)}, ${change}${interval}${p}, ${verdict}`;
}
