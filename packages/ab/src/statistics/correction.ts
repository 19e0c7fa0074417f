/** Corrections of p for many tests at once; results are in the order of `values`. */
export type Correction = "holm" | "benjamini-hochberg";

export function adjusted(values: readonly number[], correction: Correction): number[] {
  return correction === "holm" ? holm(values) : benjaminiHochberg(values);
}

/** Bounds the chance of any false alarm. Source: Holm, "A simple sequentially rejective multiple test procedure", 1979. */
function holm(values: readonly number[]): number[] {
  const result = new Array<number>(values.length);
  let floor = 0;
  for (const [step, index] of ascending(values).entries()) {
    floor = Math.max(floor, Math.min(1, values[index]! * (values.length - step)));
    result[index] = floor;
  }
  return result;
}

/** Bounds the share of false alarms among alarms. Source: Benjamini and Hochberg, "Controlling the false discovery rate", 1995. */
function benjaminiHochberg(values: readonly number[]): number[] {
  const result = new Array<number>(values.length);
  let ceiling = 1;
  for (const [step, index] of ascending(values).reverse().entries()) {
    ceiling = Math.min(ceiling, (values[index]! * values.length) / (values.length - step));
    result[index] = ceiling;
  }
  return result;
}

function ascending(values: readonly number[]): number[] {
  return values.map((_, index) => index).sort((i, j) => values[i]! - values[j]!);
}
