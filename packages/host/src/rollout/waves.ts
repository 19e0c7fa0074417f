/** Which VMs move when. */

/**
 * Waves say how many VMs have moved after each: a number, or a share of all, rounded up. Waves that add nobody are left out, and
 * VMs beyond the last wave stay.
 */
export function wavesOf<Vm>(vms: readonly Vm[], waves: readonly (number | string)[]): Vm[][] {
  const result: Vm[][] = [];
  let moved = 0;
  for (const wave of waves) {
    const text = String(wave);
    const goal = text.endsWith("%") ? Math.ceil((vms.length * Number(text.slice(0, -1))) / 100) : Number(text);
    const until = Math.min(vms.length, goal);
    if (until <= moved) continue;
    result.push(vms.slice(moved, until));
    moved = until;
  }
  return result;
}
