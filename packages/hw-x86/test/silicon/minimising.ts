/** A case that fails, with as few of its instructions as still make it fail. */
import type { TestCase } from "./case-generator.ts";

/** The case without instruction `index`; undefined where a branch would then lead elsewhere. */
function without(test: TestCase, index: number): TestCase | undefined {
  const { starts, code } = test;
  const count = starts.length - 1;
  if (count < 2 || test.names.some((name) => /\brel(8|z)/.test(name))) return undefined;
  const [from, to] = [starts[index] as number, starts[index + 1] as number];
  // Behind the instructions of a loop comes the jump to its start
  if (code.length > (starts[count] as number) + 1) return undefined;
  const shorter = Uint8Array.from([...code.subarray(0, from), ...code.subarray(to)]);
  const drop = <T>(list: readonly T[]): T[] => list.filter((_, i) => i !== index);
  return {
    ...test,
    code: shorter,
    starts: starts.filter((_, i) => i !== index + 1).map((start) => (start > from ? start - (to - from) : start)),
    names: drop(test.names),
    // What an instruction left undefined may not be so any more: what is compared is what was defined before
    undefinedFlags: test.undefinedFlags.filter((_, i) => i !== index + 1),
  };
}

/** `fails` runs a case on both. */
export function minimise(test: TestCase, fails: (test: TestCase) => boolean): TestCase {
  let least = test;
  for (let index = least.names.length - 1; index >= 0; index--) {
    const shorter = without(least, index);
    if (shorter !== undefined && fails(shorter)) least = shorter;
  }
  return least;
}
