/** Numbers for people. */
const timeSteps: [number, string][] = [
  [1e9, "s"],
  [1e6, "ms"],
  [1e3, "us"],
];
const byteSteps: [number, string][] = [
  [2 ** 30, "GiB"],
  [2 ** 20, "MiB"],
  [2 ** 10, "KiB"],
];

/** A value with its unit: "1.25 ms", "64 KiB", "12,345". */
export function formatValue(value: number, unit: string): string {
  const [base, per] = unit.split("/");
  const rate = per ? `/${per}` : "";
  if (base === "ns" || base === "bytes") {
    const step = (base === "ns" ? timeSteps : byteSteps).find(([size]) => Math.abs(value) >= size);
    return step ? `${digits(value / step[0])} ${step[1]}${rate}` : `${digits(value)} ${base === "ns" ? "ns" : "B"}${rate}`;
  }
  return `${digits(value)}${base === "cycles" ? " cycles" : ""}${rate}`;
}

export function formatPercent(value: number | undefined): string {
  return value === undefined ? "-" : `${value > 0 ? "+" : ""}${value.toFixed(Math.abs(value) < 10 ? 2 : 1)} %`;
}

export function formatP(p: number | undefined): string {
  return p === undefined ? "-" : p < 0.0001 ? "<0.0001" : p.toFixed(4);
}

function digits(value: number): string {
  const places = Number.isInteger(value) ? 0 : Math.max(0, 3 - Math.floor(Math.log10(Math.max(1, Math.abs(value)))) - 1);
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.max(places, Number.isInteger(value) ? 0 : 1) });
}
