/**
 * The engine against the processor at hand: random user-mode sequences run on both, and registers, defined flags, memory, faults
 * and FPU state must be the same. MKVM_SEED replays a run; MKVM_SILICON_CASES asks for a longer one.
 */
import { afterAll, describe, expect, test } from "vitest";
import { parseForm } from "../src/engine/decoder/form-syntax.ts";
import type { Instruction } from "../src/engine/instruction.ts";
import { floatingPoint } from "../src/engine/semantics/floating-point.ts";
import { engineMode } from "./engine-mode.ts";
import { chooseSeed, seededRandom } from "./random.ts";
import { type CaseCodeSize, type GeneratedForm, generateCase, isCompared, type TestCase } from "./silicon/case-generator.ts";
import { compareOutcomes } from "./silicon/comparison.ts";
import { EngineRunner, emptyOutcome } from "./silicon/engine-runner.ts";
import { initialFx } from "./silicon/fpu-state.ts";
import { DIFFERS, groups, groupsInBulk, initialData, OWN_TESTS, stackForms } from "./silicon/groups.ts";
import { openSilicon } from "./silicon/silicon-runner.ts";

const CASES = Number(process.env.MKVM_SILICON_CASES ?? 4000);
const BATCH = 4000;
/** One case in so many is as long as a loop's. */
const LOOP_SHARE = 10;
const SHOWN = 10;
/**
 * Cases of each group that are repeated until they are hot, and how often that is: more than the translator waits for. A page
 * that changes more often stays with the interpreter.
 */
const HOT_CASES = 20;
const HOT_RUNS = 2100;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

function describeCase(test: TestCase, differences: readonly string[]): string {
  const registers = [...test.gpr].map((value) => value.toString(16)).join(" ");
  return `${test.names.join("; ")} (${hex(test.code)})\n  ${differences.join("\n  ")}\n  registers ${registers}, flags ${test.rflags.toString(16)}`;
}

function formsOf(rows: readonly Instruction[]): GeneratedForm[] {
  return rows.flatMap(({ mnemonic, forms }) => forms.map((form) => ({ mnemonic, parsed: parseForm(form) })));
}
/** Forms that cases are made of, but none of these. `covered`: names of the instructions of all cases. */
function missingForms(forms: readonly GeneratedForm[], codeSize: CaseCodeSize, covered: ReadonlySet<string>): string[] {
  return forms
    .filter((form) => isCompared(form, codeSize) && !covered.has(`${form.mnemonic} ${form.parsed.form.operands}`))
    .map(({ mnemonic, parsed }) => `${mnemonic} ${parsed.form.opcode}`);
}

test("every row of vectors and floating point is in a group", () => {
  const compared = new Set(groups.flatMap(({ rows }) => rows));
  const isLeftOut = (row: Instruction): boolean => DIFFERS.test(row.mnemonic) || OWN_TESTS.test(row.mnemonic);
  expect(floatingPoint.filter((row) => !compared.has(row) && !isLeftOut(row)).map(({ mnemonic }) => mnemonic)).toEqual([]);
});

/** Cases for each form of a group in which it comes first, if what is drawn for it can be had. */
const DRAWS = 4;

describe("code that is not 64-bit has cases of every form of its groups, whether this processor can run them or not", () => {
  const seed = chooseSeed();
  const others = groupsInBulk.filter(({ codeSize }) => codeSize !== 64);
  test.for(others)(`$name (seed ${seed})`, ({ rows, codeSize }) => {
    const random = seededRandom(seed);
    const forms = formsOf(rows);
    const covered = new Set<string>();
    for (let i = 0; i < forms.length * DRAWS; i++) {
      const first = forms[i % forms.length];
      for (const name of generateCase(random, forms, { codeSize, fx: initialFx, first }).names) covered.add(name);
    }
    expect(missingForms(forms, codeSize, covered)).toEqual([]);
  });
});

const silicon = openSilicon();
const reason = typeof silicon === "string" ? `, skipped: ${silicon}` : "";

describe(`the engine and this processor agree on${reason}`, () => {
  const seed = chooseSeed();
  afterAll(() => {
    if (typeof silicon !== "string") silicon.close();
  });

  test.skipIf(typeof silicon === "string").for(groups)(`$name (seed ${seed})`, (group, { skip }) => {
    const { rows, codeSize, fx, rounds, needsAvx2 } = group;
    if (typeof silicon === "string") return;
    if (!silicon.codeSizes.includes(codeSize)) skip(`this kernel lets programs run no ${codeSize}-bit code`);
    if (needsAvx2 && !silicon.hasAvx2) skip("this processor has no AVX2, FMA and F16C");
    const random = seededRandom(seed);
    const forms = formsOf(rows);
    const initial = initialData(random, group);
    // A page that has kept changing stays with the interpreter: each batch has an engine of its own
    let runner = new EngineRunner(initial, silicon.vendor);
    const { vendor, allowsAnyStack, hasAvx2 } = silicon;
    const options = { fx: fx !== undefined, vendor, allowsAnyStack, hasAvx2 };
    // The interpreter keeps nearly all of the x87 stack
    const isTranslated = rows !== stackForms;
    const outcome = emptyOutcome();
    const failures: string[] = [];
    const covered = new Set<string>();
    const count = rounds === undefined ? CASES : Math.ceil(CASES / LOOP_SHARE);
    for (let done = 0; done < count; done += BATCH) {
      // Every form comes first in some cases, so that none is left to chance
      const cases = Array.from({ length: Math.min(BATCH, count - done) }, (_, i) =>
        generateCase(random, forms, { codeSize, fx: fx ?? initialFx, first: forms[(done + i) % forms.length], rounds }),
      );
      if (done > 0) runner = new EngineRunner(initial, silicon.vendor);
      for (const { names } of cases) for (const name of names) covered.add(name);
      const expected = silicon.run(initial, cases);
      cases.forEach((generated, i) => {
        runner.run(generated, outcome);
        const differences = compareOutcomes(generated, expected[i], outcome, options);
        if (differences.length > 0) failures.push(describeCase(generated, differences));
      });
      // Loops are hot by themselves
      if (rounds !== undefined || (engineMode() !== undefined && engineMode() !== "hot")) continue;
      const before = runner.regionsMade();
      cases.slice(0, HOT_CASES).forEach((generated, i) => {
        runner.runOften(generated, outcome, HOT_RUNS);
        const differences = compareOutcomes(generated, expected[i], outcome, options);
        if (differences.length > 0) failures.push(`hot: ${describeCase(generated, differences)}`);
      });
      expect(runner.regionsMade() > before || !isTranslated).toBe(true);
    }
    if (codeSize === 64 && rounds === undefined) expect(missingForms(forms, codeSize, covered)).toEqual([]);
    if (engineMode() === "always") expect(runner.regionsMade() > 0 || !isTranslated).toBe(true);
    expect(failures.length, failures.slice(0, SHOWN).join("\n")).toBe(0);
  });
});
