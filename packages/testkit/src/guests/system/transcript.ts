/** What the system guest printed, and where two machines are not alike in it. */
import type { SystemCase } from "./case-writer.ts";
import { KNOWN_DIFFERENCES, type KnownDifference, NOT_ON_AMD } from "./known-differences.ts";
import { RESET_WORDS } from "./reset-state.ts";
import { FRAME_WORDS } from "./runtime.ts";
import { LAST_LINE } from "./system-guest.ts";

/** Of selectors only 16 bits are pushed, or 32: what is above them in the frame is any processor's own affair. */
const SELECTORS = new Set("ss gs fs es ds cs oldSs vmEs vmDs vmFs vmGs".split(" "));

/** Words of a line by name; "memory" has what changed there. */
export type Outcome = Readonly<Record<string, string>>;

export interface Difference {
  readonly name: string;
  readonly words: readonly string[];
  readonly theirs: Outcome;
  readonly ours: Outcome;
  readonly known: KnownDifference | undefined;
}

/** The state after reset, then an outcome for each case. Throws where the guest did not come to its end. */
export function readTranscript(text: string, bits: 32 | 64, cases: readonly SystemCase[]): Outcome[] {
  const lines = text.split("\n").filter((line) => line.startsWith("@"));
  const outcomes = lines
    .filter((line) => line !== LAST_LINE)
    .map((line, i): Outcome => {
      const [number, ...words] = line.trim().slice(1).split(" ");
      if (Number.parseInt(number as string, 16) !== i) throw new Error(`line ${i} of the system guest is ${line}`);
      const names = i === 0 ? RESET_WORDS : (FRAME_WORDS[bits] as readonly string[]);
      const values = names.map((name, at): [string, string] => {
        const word = words[at] ?? "missing";
        return [name, SELECTORS.has(name) ? (Number.parseInt(word, 16) & 0xffff).toString(16) : word];
      });
      return { ...Object.fromEntries(values), ...(i > 0 && { memory: words.slice(names.length).join(" ") }) };
    });
  if (lines.at(-1) !== LAST_LINE || outcomes.length !== cases.length + 1)
    throw new Error(`the system guest ended at "${cases[outcomes.length - 1]?.name ?? "reset"}": ${lines.at(-1)}`);
  return outcomes;
}

/** Where `ours` is not as `theirs`. */
export function compareOutcomes(
  cases: readonly SystemCase[],
  theirs: readonly Outcome[],
  ours: readonly Outcome[],
  vendor: "intel" | "amd",
): Difference[] {
  return theirs.flatMap((expected, i) => {
    const actual = ours[i] as Outcome;
    const words = Object.keys(expected).filter((word) => expected[word] !== actual[word]);
    if (words.length === 0) return [];
    const name = i === 0 ? "state after reset" : (cases[i - 1] as SystemCase).name;
    if (vendor === "amd" && NOT_ON_AMD.test(name)) return [];
    const known = KNOWN_DIFFERENCES.find((each) => each.cases.test(name) && words.every((word) => each.words.includes(word)));
    return [{ name, words, theirs: expected, ours: actual, known }];
  });
}

/** Differences that these cases should show and did not: what is in the table must still be so. */
export function missingDifferences(cases: readonly SystemCase[], found: readonly Difference[]): string[] {
  return KNOWN_DIFFERENCES.filter(
    (each) => cases.some(({ name }) => each.cases.test(name)) && !found.some(({ known }) => known === each),
  ).map(({ what }) => what);
}

export function describeDifference({ name, words, theirs, ours }: Difference): string {
  const each = words.map((word) => `${word} ${theirs[word]}, ours ${ours[word]}`);
  return `${name} (vector ${theirs.vector}, ours ${ours.vector}): ${each.join("; ")}`;
}
