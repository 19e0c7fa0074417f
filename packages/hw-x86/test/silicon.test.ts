/**
 * The engine against the processor at hand: random user-mode sequences run on both, and registers, defined flags, memory, faults
 * and FPU state must be the same. MKVM_SEED replays a run; MKVM_SILICON_CASES asks for a longer one.
 */
import { afterAll, describe, expect, test } from "vitest";
import { parseForm } from "../src/engine/decoder/form-syntax.ts";
import type { Instruction } from "../src/engine/instruction.ts";
import { arithmetic } from "../src/engine/semantics/arithmetic.ts";
import { bitManipulation } from "../src/engine/semantics/bit-manipulation.ts";
import { bits } from "../src/engine/semantics/bits.ts";
import { control } from "../src/engine/semantics/control.ts";
import { cryptography } from "../src/engine/semantics/crypto.ts";
import { decimal } from "../src/engine/semantics/decimal.ts";
import { flagControl } from "../src/engine/semantics/flag-control.ts";
import { floatingPoint, vexEncoded } from "../src/engine/semantics/floating-point.ts";
import { comparableExtensions } from "../src/engine/semantics/integer-extensions.ts";
import { logic } from "../src/engine/semantics/logic.ts";
import { moves } from "../src/engine/semantics/moves.ts";
import { packedStrings } from "../src/engine/semantics/packed-strings.ts";
import { shifts } from "../src/engine/semantics/shifts.ts";
import { sseConvert } from "../src/engine/semantics/sse-convert.ts";
import { sseFloat } from "../src/engine/semantics/sse-float.ts";
import { sse3 } from "../src/engine/semantics/sse3.ts";
import { sse4Float } from "../src/engine/semantics/sse4-float.ts";
import { sse4Integer } from "../src/engine/semantics/sse4-integer.ts";
import { ssse3 } from "../src/engine/semantics/ssse3.ts";
import { stack } from "../src/engine/semantics/stack.ts";
import { strings } from "../src/engine/semantics/strings.ts";
import { vectorInteger } from "../src/engine/semantics/vector-integer.ts";
import { vectorMoves } from "../src/engine/semantics/vector-moves.ts";
import { x87 } from "../src/engine/semantics/x87.ts";
import { x87Control } from "../src/engine/semantics/x87-control.ts";
import { engineMode } from "./engine-mode.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";
import { awkwardFx, awkwardQuadword } from "./silicon/awkward-fpu-state.ts";
import {
  type CaseCodeSize,
  DATA_BYTES,
  type GeneratedForm,
  generateCase,
  LEFT_OUT,
  type TestCase,
} from "./silicon/case-generator.ts";
import { compareOutcomes } from "./silicon/comparison.ts";
import { EngineRunner, emptyOutcome } from "./silicon/engine-runner.ts";
import { initialFx, randomFx } from "./silicon/fpu-state.ts";
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

interface Group {
  readonly name: string;
  readonly rows: readonly Instruction[];
  readonly codeSize: CaseCodeSize;
  readonly fx: ((random: Random) => Uint8Array) | undefined;
  /** The instructions of a case are a loop of so many rounds, and there are fewer cases. */
  readonly rounds?: number;
  readonly needsAvx2?: true;
}

const integer = [
  arithmetic,
  logic,
  shifts,
  bits,
  moves,
  stack,
  control,
  strings,
  flagControl,
  comparableExtensions,
  bitManipulation,
].flat();
// Which bits of MXCSR exist is the model's affair
const vector = [vectorMoves, vectorInteger, sseFloat, sseConvert].flat().filter(({ mnemonic }) => mnemonic !== "LDMXCSR");
const avx = vexEncoded.filter(({ mnemonic }) => mnemonic !== "VLDMXCSR");
const later = [sse3, ssse3, sse4Integer, packedStrings, sse4Float, cryptography].flat();
const sse = vector.filter(({ requires }) => !requires?.includes("mmx"));
/**
 * Makers differ in the last bit of transcendentals and what they do outside their domains, in C1 after FCOMI, and in the
 * pointers and the order of faults of state images: float-silicon.test.ts and fxsave.test.ts test those.
 */
const DIFFERS =
  /^(F2XM1|FYL2X|FYL2XP1|FPATAN|FPTAN|FSIN|FCOS|FSINCOS|FU?COMIP?|FN?SAVE|FN?STENV|FLDENV|FRSTOR|FXSAVE|FXRSTOR)$/;
/** Left out by the generator, since processors differ; float-silicon.test.ts has the approximations. */
const NO_CASE = LEFT_OUT;
const stackForms = [...x87, ...x87Control].filter(({ mnemonic }) => !DIFFERS.test(mnemonic));
const groups: readonly Group[] = [
  { name: "integer instructions in 64-bit mode", rows: integer, codeSize: 64, fx: undefined },
  { name: "integer instructions in compatibility mode", rows: [...integer, ...decimal], codeSize: 32, fx: undefined },
  { name: "integer instructions in 16-bit segments", rows: [...integer, ...decimal], codeSize: 16, fx: undefined },
  { name: "strings in 64-bit mode", rows: strings, codeSize: 64, fx: undefined },
  { name: "MMX, SSE and SSE2 in 64-bit mode", rows: vector, codeSize: 64, fx: randomFx },
  { name: "SSE and SSE2 at the edges of floating point", rows: vector, codeSize: 64, fx: awkwardFx },
  // So often that regions are made of them: what one round leaves is what the next one computes with
  { name: "SSE and SSE2 in loops", rows: sse, codeSize: 64, fx: awkwardFx, rounds: 3000 },
  { name: "MMX, SSE and SSE2 in compatibility mode", rows: vector, codeSize: 32, fx: awkwardFx },
  { name: "SSE3 to SSE4.2, AES and SHA in 64-bit mode", rows: later, codeSize: 64, fx: awkwardFx },
  { name: "SSE3 to SSE4.2, AES and SHA in loops", rows: later, codeSize: 64, fx: awkwardFx, rounds: 300 },
  { name: "SSE3 to SSE4.2, AES and SHA in compatibility mode", rows: later, codeSize: 32, fx: randomFx },
  { name: "AVX, AVX2, FMA and F16C in 64-bit mode", rows: avx, codeSize: 64, fx: randomFx, needsAvx2: true },
  { name: "AVX, AVX2, FMA and F16C at the edges of floating point", rows: avx, codeSize: 64, fx: awkwardFx, needsAvx2: true },
  { name: "AVX, AVX2, FMA and F16C in loops", rows: avx, codeSize: 64, fx: awkwardFx, rounds: 300, needsAvx2: true },
  { name: "AVX, AVX2, FMA and F16C in compatibility mode", rows: avx, codeSize: 32, fx: awkwardFx, needsAvx2: true },
  { name: "x87 in 64-bit mode", rows: stackForms, codeSize: 64, fx: awkwardFx },
  { name: "x87 in compatibility mode", rows: stackForms, codeSize: 32, fx: awkwardFx },
];

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

function describeCase(test: TestCase, differences: readonly string[]): string {
  const registers = [...test.gpr].map((value) => value.toString(16)).join(" ");
  return `${test.names.join("; ")} (${hex(test.code)})\n  ${differences.join("\n  ")}\n  registers ${registers}, flags ${test.rflags.toString(16)}`;
}

/** Which bits exist is the model's affair. */
const OWN_TESTS = /^V?LDMXCSR$/;
test("every row of vectors and floating point is in a group", () => {
  const compared = new Set(groups.flatMap(({ rows }) => rows));
  const isLeftOut = (row: Instruction): boolean => DIFFERS.test(row.mnemonic) || OWN_TESTS.test(row.mnemonic);
  expect(floatingPoint.filter((row) => !compared.has(row) && !isLeftOut(row)).map(({ mnemonic }) => mnemonic)).toEqual([]);
});

const silicon = openSilicon();
const reason = typeof silicon === "string" ? `, skipped: ${silicon}` : "";

describe(`the engine and this processor agree on${reason}`, () => {
  const seed = chooseSeed();
  afterAll(() => {
    if (typeof silicon !== "string") silicon.close();
  });

  test.skipIf(typeof silicon === "string").for(groups)(
    `$name (seed ${seed})`,
    ({ rows, codeSize, fx, rounds, needsAvx2 }, { skip }) => {
      if (typeof silicon === "string") return;
      if (!silicon.codeSizes.includes(codeSize)) skip(`this kernel lets programs run no ${codeSize}-bit code`);
      if (needsAvx2 && !silicon.hasAvx2) skip("this processor has no AVX2, FMA and F16C");
      const random = seededRandom(seed);
      const forms: GeneratedForm[] = rows.flatMap(({ mnemonic, forms: own }) =>
        own.map((form) => ({ mnemonic, parsed: parseForm(form) })),
      );
      const initial = Uint8Array.from({ length: DATA_BYTES }, () => random.next());
      if (fx === awkwardFx) {
        const words = new BigUint64Array(initial.buffer);
        words.forEach((_, i) => {
          if (!random.oneIn(3)) words[i] = awkwardQuadword(random, random.oneIn(2));
        });
      }
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
      if (codeSize === 64 && rounds === undefined) {
        const missing = forms.filter(({ mnemonic, parsed }) => {
          const isLeftOut = NO_CASE.test(mnemonic) || parsed.form.attributes.includes("invalid64");
          return !isLeftOut && !covered.has(`${mnemonic} ${parsed.form.operands}`);
        });
        expect(missing.map(({ mnemonic, parsed }) => `${mnemonic} ${parsed.form.opcode}`)).toEqual([]);
      }
      if (engineMode() === "always") expect(runner.regionsMade() > 0 || !isTranslated).toBe(true);
      expect(failures.length, failures.slice(0, SHOWN).join("\n")).toBe(0);
    },
  );
});
