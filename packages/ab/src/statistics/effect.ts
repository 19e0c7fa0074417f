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

/**
 * Median of all means of two differences, each with each: Hodges and Lehmann's estimate for pairs, which goes with the signed-rank
 * test. A mean of x and y is half of x - (-y), so it is the same count.
 */
export function pseudoMedian(differences: readonly number[]): number {
  return (
    hodgesLehmannShift(
      differences.map((difference) => -difference),
      differences,
    ) / 2
  );
}

/** The `k`th smallest of right[j] - left[i], from 1; both ascending. */
function kthDifference(left: Float64Array, right: Float64Array, k: number): number {
  // Both ends are always differences that there are, so that few steps are left once few of them lie between.
  let low = right[0]! - left.at(-1)!;
  let high = right.at(-1)! - left[0]!;
  while (low < high) {
    const middle = low + (high - low) / 2;
    // Between neighbouring numbers the middle may be rounded up to the higher.
    const { count, largest, next } = upTo(left, right, middle < high ? middle : low);
    if (count >= k) high = largest;
    else low = next;
  }
  return high;
}

/** Differences that are at most `limit`: how many, the largest of them, and the smallest of the others. */
function upTo(left: Float64Array, right: Float64Array, limit: number): { count: number; largest: number; next: number } {
  let count = 0;
  let largest = Number.NEGATIVE_INFINITY;
  let next = Number.POSITIVE_INFINITY;
  let end = 0;
  for (const from of left) {
    while (end < right.length && right[end]! - from <= limit) end++;
    count += end;
    if (end > 0) largest = Math.max(largest, right[end - 1]! - from);
    if (end < right.length) next = Math.min(next, right[end]! - from);
  }
  return { count, largest, next };
}

/** Chance that b is greater less the chance that a is, -1 to 1: Cliff's delta. `u` as of the rank test. */
export function cliffsDelta(u: number, sizeA: number, sizeB: number): number {
  return (2 * u) / (sizeA * sizeB) - 1;
}
