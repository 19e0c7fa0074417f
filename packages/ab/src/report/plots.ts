/** Plots as SVG, made here so that the page needs no script. Colours are the page's, which follow its light or dark scheme. */
import { parse, View } from "vega";
import { compile, type TopLevelSpec } from "vega-lite";
import type { Result, ResultComparison } from "./result.ts";

const colors = { domain: ["A", "B"], range: ["var(--arm-a)", "var(--arm-b)"] };
const ink = "currentColor";
const config = {
  background: "transparent",
  font: "inherit",
  view: { stroke: "transparent" },
  axis: { labelColor: ink, titleColor: ink, tickColor: ink, domainColor: ink, gridColor: ink, gridOpacity: 0.15 },
  legend: { labelColor: ink, titleColor: ink },
  title: { color: ink },
} as const;

interface Row {
  arm: "A" | "B";
  round: number;
  order: number;
  value: number;
}

function rowsOf(result: Result, metric: string): Row[] {
  return result.rounds.flatMap(({ arm, round, values }, order) =>
    values[metric] === undefined ? [] : [{ arm: arm === "a" ? "A" : "B", round, order: order + 1, value: values[metric] }],
  );
}

/** Every round's value by arm, with the medians. */
export function distributionPlot(result: Result, comparison: ResultComparison): Promise<string> {
  return svg({
    width: 320,
    height: 90,
    data: { values: rowsOf(result, comparison.metric) },
    encoding: { y: { field: "arm", type: "nominal", title: null } },
    layer: [
      {
        mark: { type: "point", filled: true, opacity: 0.6, size: 28 },
        encoding: { x: valueAxis(comparison), color: armColor },
      },
      {
        mark: { type: "tick", thickness: 2, size: 34, color: ink },
        encoding: { x: { ...valueAxis(comparison), aggregate: "median" } },
      },
    ],
  });
}

/** Values in the order in which they were measured: drift shows here. */
export function timelinePlot(result: Result, comparison: ResultComparison): Promise<string> {
  return svg({
    width: 320,
    height: 90,
    data: { values: rowsOf(result, comparison.metric) },
    mark: { type: "line", point: true },
    encoding: {
      x: { field: "order", type: "quantitative", title: result.kind === "live" ? "VM" : "run", axis: { tickMinStep: 1 } },
      y: valueAxis(comparison),
      color: armColor,
    },
  });
}

/** Medians of the exits of each reason that came up; undefined when the modules count none. */
export async function exitsPlot(result: Result): Promise<string | undefined> {
  const reasons = result.comparisons.filter(
    ({ metric, a, b }) =>
      metric.startsWith("exit_") && !metric.startsWith("exit_latency_") && (a.median !== 0 || b.median !== 0),
  );
  if (reasons.length === 0) return undefined;
  const values = reasons.flatMap(({ metric, a, b }) => {
    const reason = metric.slice("exit_".length);
    return [
      { reason, arm: "A", value: a.median },
      { reason, arm: "B", value: b.median },
    ];
  });
  return svg({
    width: 560,
    height: { step: 11 },
    data: { values },
    mark: { type: "bar" },
    encoding: {
      y: { field: "reason", type: "nominal", sort: "-x", title: null },
      yOffset: { field: "arm" },
      x: { field: "value", type: "quantitative", title: "exits, median of rounds" },
      color: armColor,
    },
  });
}

const armColor = { field: "arm", type: "nominal", scale: colors, legend: null } as const;

function valueAxis({ metric, unit }: ResultComparison) {
  return { field: "value", type: "quantitative", title: `${metric} [${unit}]`, scale: { zero: false } } as const;
}

async function svg(spec: object): Promise<string> {
  const view = new View(parse(compile({ ...spec, config } as TopLevelSpec).spec), { renderer: "none" });
  const text = await view.toSVG();
  view.finalize();
  return text;
}
