/** How large a difference is. */

/**
 * Median of all differences b - a: the shift of Hodges and Lehmann, which goes with the rank test. The bootstrap asks for it
 * thousands of times, so the differences are counted in sorted samples, not listed.
 */
export function hodgesLehmannShift(a: readonly number[], b: readonly number[]): number {
  const left = Float64Array.from(a).sort();
  const right = Float64Array.from(b).sort();
  const pairs = left.length * right.length;
  const upper = kthDifference(left, right, Math.floor(pairs / 2) + 1);
  return pairs % 2 === 1 ? upper : (kthDifference(left, right, pairs / 2) + upper) / 2;
}

/** The `k`th smallest of right[j] - left[i], from 1; both ascending. */
function kthDifference(left: Float64Array, right: Float64Array, k: number): number {
  let low = right[0]! - left.at(-1)!;
  let high = right.at(-1)! - left[0]!;
  for (;;) {
    const middle = low + (high - low) / 2;
    // Neighbouring numbers: nothing lies between them.
    if (middle <= low || middle >= high) break;
    if (upTo(left, right, middle).count >= k) high = middle;
    else low = middle;
  }
  const atLow = upTo(left, right, low);
  return atLow.count >= k ? atLow.largest : upTo(left, right, high).largest;
}

/** Differences that are at most `limit`: how many, and the largest of them. */
function upTo(left: Float64Array, right: Float64Array, limit: number): { count: number; largest: number } {
  let count = 0;
  let largest = Number.NEGATIVE_INFINITY;
  let end = 0;
  for (const from of left) {
    while (end < right.length && right[end]! - from <= limit) end++;
    count += end;
    if (end > 0) largest = Math.max(largest, right[end - 1]! - from);
  }
  return { count, largest };
}

/** Chance that b is greater less the chance that a is, -1 to 1: Cliff's delta. `u` as of the rank test. */
export function cliffsDelta(u: number, sizeA: number, sizeB: number): number {
  return (2 * u) / (sizeA * sizeB) - 1;
}
