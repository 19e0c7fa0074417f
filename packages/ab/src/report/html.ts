/** One page that needs nothing else: no script, no network, light or dark as the reader's system is. */
import { formatP, formatPercent, formatValue } from "./format.ts";
import { distributionPlot, exitsPlot, timelinePlot } from "./plots.ts";
import type { Result, ResultComparison } from "./result.ts";
import { armText, isPresent, roundsText, summary } from "./table.ts";

export async function htmlPage(result: Result): Promise<string> {
  const judged = result.comparisons.filter(({ verdict }) => verdict !== undefined);
  const present = result.comparisons.filter(isPresent);
  const exits = await exitsPlot(result);
  const figures: string[] = [];
  for (const comparison of judged) {
    const [distribution, timeline] = [await distributionPlot(result, comparison), await timelinePlot(result, comparison)];
    figures.push(
      `<section><h3>${escaped(comparison.metric)} ${badge(comparison.verdict)}</h3><div class="pair">` +
        `<figure>${distribution}<figcaption>distribution</figcaption></figure>` +
        `<figure>${timeline}<figcaption>timeline</figcaption></figure></div></section>`,
    );
  }
  const { a, b } = result.arms;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>${escaped(result.name)}: ${result.verdict}</title>
<style>${style}</style>
</head>
<body>
<main>
<h1>${escaped(result.name)} ${badge(result.verdict)}</h1>
<p${result.complete ? "" : ' class="partial"'}>${escaped(summary(result))}</p>
<dl>
<dt><span class="key a"></span>A</dt><dd>${escaped(armText(a))}</dd>
<dt><span class="key b"></span>B</dt><dd>${escaped(armText(b))}</dd>
<dt>runs</dt><dd>${escaped(`${roundsText(result)}, ${result.clock} clock, seed ${result.seed}, ${result.date}`)}</dd>
</dl>
<h2>Judged</h2>
${table(judged, result)}
${exits ? `<h2>Exits by reason</h2><figure>${exits}</figure>` : ""}
<h2>Plots</h2>
${figures.join("\n")}
<h2>Everything measured</h2>
<details><summary>${present.length} metrics</summary>${table(present, result)}</details>
<p>${result.comparisons.length - present.length} more were 0 on both arms.</p>
${only("A", result.onlyOn.a)}${only("B", result.onlyOn.b)}
</main>
</body>
</html>
`;
}

function table(comparisons: readonly ResultComparison[], result: Result): string {
  const rows = comparisons.map(
    ({ metric, unit, a, b, percent, percentInterval, shift, cliffsDelta, p, pAdjusted, verdict }) => {
      const cells = [
        formatValue(a.median, unit),
        formatValue(b.median, unit),
        percent === undefined ? formatValue(shift, unit) : formatPercent(percent),
        percentInterval ? percentInterval.map(formatPercent).join(" .. ") : "-",
        formatP(pAdjusted ?? p),
        cliffsDelta.toFixed(2),
      ];
      return `<tr><th scope="row">${escaped(metric)}</th>${cells.map((cell) => `<td>${escaped(cell)}</td>`).join("")}<td>${badge(verdict)}</td></tr>`;
    },
  );
  const heads = ["metric", "A", "B", "change", `${result.confidence * 100} % interval`, "p", "Cliff's delta", "verdict"];
  return `<div class="scroll"><table><thead><tr>${heads.map((head) => `<th scope="col">${escaped(head)}</th>`).join("")}</tr></thead><tbody>${rows.join("\n")}</tbody></table></div>`;
}

function badge(verdict: string | undefined): string {
  return verdict ? `<span class="badge ${verdict}">${verdict}</span>` : "";
}

function only(arm: string, names: readonly string[]): string {
  return names.length ? `<p>Only on ${arm}: ${names.map((name) => `<code>${escaped(name)}</code>`).join(", ")}</p>` : "";
}

function escaped(text: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (character) => entities[character]!);
}

const style = `
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --line: #d0d7de; --arm-a: #0072b2; --arm-b: #d55e00; --bad: #b3261e; --good: #1a7f37; --open: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8ea; --line: #3a4149; --arm-a: #56b4e9; --arm-b: #e69f00; --bad: #ff8a80; --good: #7ee787; --open: #f2cc60; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:last-child { text-align: left; }
.scroll, figure { overflow-x: auto; margin: 0; }
.pair { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figcaption { font-size: .85em; opacity: .75; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.key { display: inline-block; width: .75em; height: .75em; margin-right: .4em; border-radius: 50%; }
.key.a { background: var(--arm-a); } .key.b { background: var(--arm-b); }
.badge { border: 1px solid currentColor; border-radius: 1em; font-size: .75rem; padding: .1em .6em; vertical-align: middle; }
.regressed, .partial { color: var(--bad); } .improved { color: var(--good); } .inconclusive { color: var(--open); }
`;
