/**
 * `pnpm verify:hw`: the engine against silicon and the decoder against iced-x86, in bulk. Slices of cases have seeds of their own, which
 * follow from --seed, so that a slice that fails can be had again: --seed S --from N --silicon 4000. Run at the lowest priority.
 *
 *   --silicon N   cases in all (2,000,000), over all groups of test/silicon/groups.ts; loops count as one case
 *   --decoder N   byte strings in all (5,000,000), a third each in 16-, 32- and 64-bit mode
 *   --seed S      (of the time)      --from N   the first slice (0)
 */
import { setPriority } from "node:os";
import { parseArgs } from "node:util";
import { parseForm } from "../src/engine/decoder/form-syntax.ts";
import type { Form, Instruction } from "../src/engine/instruction.ts";
import { farTransfers } from "../src/engine/semantics/far-transfers.ts";
import { instructions } from "../src/engine/semantics/index.ts";
import { machineExtensions } from "../src/engine/semantics/integer-extensions.ts";
import { io } from "../src/engine/semantics/io.ts";
import { segments } from "../src/engine/semantics/segments.ts";
import { system } from "../src/engine/semantics/system.ts";
import { xsave } from "../src/engine/semantics/xsave.ts";
import { isJudgedLater, randomCode } from "../test/decoder-cases.ts";
import { type CodeSize, compareDecoders } from "../test/decoder-comparison.ts";
import { seededRandom } from "../test/random.ts";
import {
  type CaseCodeSize,
  type GeneratedForm,
  generateCase,
  isCompared,
  LEFT_OUT,
  type TestCase,
} from "../test/silicon/case-generator.ts";
import { compareOutcomes } from "../test/silicon/comparison.ts";
import { EngineRunner, emptyOutcome } from "../test/silicon/engine-runner.ts";
import { initialFx } from "../test/silicon/fpu-state.ts";
import { DIFFERS, type Group, groupsInBulk, initialData, OWN_TESTS } from "../test/silicon/groups.ts";
import { minimise } from "../test/silicon/minimising.ts";
import { openSilicon, type Silicon } from "../test/silicon/silicon-runner.ts";

const { values } = parseArgs({
  options: {
    silicon: { type: "string", default: "2000000" },
    decoder: { type: "string", default: "5000000" },
    seed: { type: "string", default: String(Date.now() % 2 ** 31) },
    from: { type: "string", default: "0" },
  },
});
const seed = Number(values.seed);
const SLICE = 4000;
/** A slice of loops has so many cases. */
const LOOPS = 400;
/** One slice in so many is translated at first sight, which is slow; loops are translated when they are hot. */
const TRANSLATED = 10;
const DECODER_SLICE = 50_000;
const SHOWN = 40;
setPriority(19);

const failures: string[] = [];
const report = (text: string): void => console.log(text);

// ---- Silicon ----

const nameOf = ({ mnemonic }: Instruction, { opcode, operands }: Form): string => `${mnemonic} ${operands} [${opcode}]`;
/** Cases of each form, by the size of the code that they were in. */
const casesBySize: Readonly<Record<CaseCodeSize, Map<Form, number>>> = { 16: new Map(), 32: new Map(), 64: new Map() };
const formsByName = new Map<string, Form[]>();
const siliconCases = { interpreted: 0, translated: 0, loops: 0 };

function formsOf(group: Group): GeneratedForm[] {
  return group.rows.flatMap(({ mnemonic, forms }) => forms.map((form) => ({ mnemonic, parsed: parseForm(form) })));
}

function describeCase(test: TestCase, differences: readonly string[]): string {
  const registers = [...test.gpr].map((value) => value.toString(16)).join(" ");
  const code = Buffer.from(test.code).toString("hex");
  return `${test.names.join("; ")} (${code})\n  ${differences.join("\n  ")}\n  registers ${registers}, flags ${test.rflags.toString(16)}`;
}

function runSlice(silicon: Silicon, group: Group, slice: number): number {
  const isTranslated = group.rounds === undefined && slice % TRANSLATED === 0;
  process.env.MKVM_ENGINE = group.rounds !== undefined ? "hot" : isTranslated ? "always" : "off";
  const random = seededRandom((seed + slice) >>> 0);
  const forms = formsOf(group);
  const initial = initialData(random, group);
  const runner = new EngineRunner(initial, silicon.vendor);
  const count = group.rounds === undefined ? SLICE : LOOPS;
  const { codeSize, fx, rounds } = group;
  const cases = Array.from({ length: count }, (_, i) =>
    generateCase(random, forms, { codeSize, fx: fx ?? initialFx, first: forms[(slice * 7 + i) % forms.length], rounds }),
  );
  const options = {
    fx: fx !== undefined,
    vendor: silicon.vendor,
    allowsAnyStack: silicon.allowsAnyStack,
    hasAvx2: silicon.hasAvx2,
  };
  const outcome = emptyOutcome();
  const differencesOf = (test: TestCase, expected = silicon.run(initial, [test])[0]): string[] => {
    runner.run(test, outcome);
    return expected === undefined ? [] : compareOutcomes(test, expected, outcome, options);
  };
  const expected = silicon.run(initial, cases);
  cases.forEach((test, i) => {
    const first = forms[(slice * 7 + i) % forms.length]?.parsed.form;
    for (const [at, name] of test.names.entries()) {
      // Forms that share a name are told apart where they come first
      const named = formsByName.get(name) ?? [];
      const form = named.length === 1 ? named[0] : at === 0 && first !== undefined && named.includes(first) ? first : undefined;
      if (form !== undefined) casesBySize[codeSize].set(form, (casesBySize[codeSize].get(form) ?? 0) + 1);
    }
    if (differencesOf(test, expected[i]).length === 0) return;
    const least = minimise(test, (candidate) => differencesOf(candidate).length > 0);
    failures.push(`slice ${slice}, ${group.name}: ${describeCase(least, differencesOf(least))}`);
  });
  if (rounds !== undefined) siliconCases.loops += count;
  else if (isTranslated) siliconCases.translated += count;
  else siliconCases.interpreted += count;
  return count;
}

function usableGroups(silicon: Silicon): Group[] {
  return groupsInBulk.filter(
    ({ codeSize, needsAvx2 }) => silicon.codeSizes.includes(codeSize) && (silicon.hasAvx2 || !needsAvx2),
  );
}

function verifySilicon(wanted: number): void {
  const silicon = openSilicon();
  if (typeof silicon === "string") {
    report(`silicon: not compared: ${silicon}`);
    return;
  }
  const usable = usableGroups(silicon);
  for (const group of usable) {
    for (const { mnemonic, parsed } of formsOf(group)) {
      const name = `${mnemonic} ${parsed.form.operands}`;
      const known = formsByName.get(name) ?? [];
      if (!known.includes(parsed.form)) formsByName.set(name, [...known, parsed.form]);
    }
  }
  let done = 0;
  const start = performance.now();
  for (let slice = Number(values.from); done < wanted && failures.length < SHOWN; slice++) {
    done += runSlice(silicon, usable[slice % usable.length] as Group, slice);
    if (slice % 50 === 49)
      report(`silicon: ${done} cases, ${failures.length} failures, ${Math.round((performance.now() - start) / 1000)} s`);
  }
  silicon.close();
  reportForms(silicon);
}

/** Rows whose outcome depends on more than registers and memory of a program: what tests have them instead. */
const ELSEWHERE: readonly (readonly [string, readonly Instruction[]])[] = [
  ["the system's state", [...system, ...xsave, ...segments, ...farTransfers, ...io, ...machineExtensions]],
];

function reportForms(silicon: Silicon): void {
  const { interpreted, translated, loops } = siliconCases;
  report(
    `silicon: ${interpreted + translated + loops} cases: ${interpreted} interpreted, ${translated} translated, ${loops} loops`,
  );
  const system = new Set(ELSEWHERE.flatMap(([, rows]) => rows));
  const counts = { compared: 0, ownTests: 0, system: 0, otherModes: 0 };
  const missing: string[] = [];
  const hasCases = (form: Form): boolean => Object.values(casesBySize).some((cases) => cases.has(form));
  for (const row of instructions) {
    for (const form of row.forms) {
      if (hasCases(form)) counts.compared++;
      else if (system.has(row)) counts.system++;
      else if (LEFT_OUT.test(row.mnemonic) || DIFFERS.test(row.mnemonic) || OWN_TESTS.test(row.mnemonic)) counts.ownTests++;
      else if (form.attributes.includes("invalid64") && !silicon.codeSizes.includes(32)) counts.otherModes++;
      else missing.push(nameOf(row, form));
    }
  }
  report(`forms: ${counts.compared} compared, ${counts.system} that depend on the system's state (tests of their own)`);
  report(`forms: ${counts.ownTests} where processors differ (float-silicon, fxsave and vendor-behaviour tests)`);
  if (counts.otherModes > 0)
    report(`forms: ${counts.otherModes} outside 64-bit mode, which this kernel does not let programs run in`);
  reportMissing("forms with no case", missing);
  for (const codeSize of silicon.codeSizes) reportSize(silicon, codeSize);
}

function reportMissing(what: string, missing: readonly string[]): void {
  report(`${what}: ${missing.length === 0 ? "none" : `${missing.length}\n  ${missing.join("\n  ")}`}`);
  if (missing.length > 0) process.exitCode = 1;
}

/** Of the forms that groups of that size have and code of that size can have. */
function reportSize(silicon: Silicon, codeSize: CaseCodeSize): void {
  const cases = casesBySize[codeSize];
  const missing = new Set<string>();
  let compared = 0;
  for (const group of usableGroups(silicon).filter((one) => one.codeSize === codeSize)) {
    for (const row of group.rows) {
      for (const form of row.forms) {
        if (cases.has(form)) compared++;
        else if (isCompared({ mnemonic: row.mnemonic, parsed: parseForm(form) }, codeSize)) missing.add(nameOf(row, form));
      }
    }
  }
  reportMissing(`${codeSize}-bit code: ${compared} forms in its groups compared, with no case`, [...missing]);
}

// ---- Decoder ----

const MODES: readonly CodeSize[] = [16, 32, 64];

function verifyDecoder(wanted: number): void {
  let done = 0;
  let decoded = 0;
  for (let slice = Number(values.from); done < wanted && failures.length < SHOWN; slice++) {
    const codeSize = MODES[slice % MODES.length] as CodeSize;
    const code = randomCode(seededRandom((seed + slice) >>> 0), codeSize, DECODER_SLICE);
    compareDecoders(code, codeSize, ({ bytes, ours, variant, mnemonic, difference }) => {
      if (ours === "ok") decoded++;
      const isInvalid = ours === "ok" && mnemonic === "INVALID" && !isJudgedLater(variant);
      const what = difference ?? (isInvalid ? "invalid for iced-x86" : undefined);
      if (what !== undefined) {
        failures.push(`slice ${slice}, ${codeSize}-bit: ${Buffer.from(bytes).toString("hex")} ${variant?.name}: ${what}`);
      }
    });
    done += DECODER_SLICE;
  }
  report(`decoder: ${done} byte strings, of which ${decoded} are instructions`);
}

report(`seed ${seed}`);
if (Number(values.decoder) > 0) verifyDecoder(Number(values.decoder));
if (Number(values.silicon) > 0) verifySilicon(Number(values.silicon));
report(failures.length === 0 ? "no failures" : `${failures.length} failures:\n${failures.slice(0, SHOWN).join("\n")}`);
if (failures.length > 0) process.exitCode = 1;
