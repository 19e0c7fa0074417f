import { resolve } from "node:path";
import { expect, test } from "vitest";
import { moveCases } from "../packages/kvm-v1/test/moved-state/cases.ts";
import { problemsOf } from "../scripts/state/check.ts";
import { moduleSources, type SourceText } from "../scripts/state/scan.ts";

const sources = moduleSources(resolve(import.meta.dirname, ".."));

const withText = (file: string, change: (text: string) => string): SourceText[] =>
  sources.map((source) => (`${source.package}/${source.file}` === file ? { ...source, text: change(source.text) } : source));

test("a move forgets nothing: each field has a test, each piece of state a declaration", () => {
  expect(problemsOf(sources)).toEqual([]);
});

test("a class with a new field is named, as are variables that functions share, members of data, and files' own", () => {
  const cure = "is not declared: say in scripts/state/";
  const vcpu = withText("kvm-v1/vcpu.ts", (text) => text.replace("  tscAdjust = 0n;", "  tscAdjust = 0n;\n  #asyncFault = 0;"));
  expect(problemsOf(vcpu)).toEqual([expect.stringContaining(`kvm-v1/src/vcpu.ts: Vcpu.#asyncFault ${cure}kvm-v1.ts`)]);
  const pit = withText("kvm-core/pit.ts", (text) =>
    text.replace("  let periodNs = 0;", "  let periodNs = 0;\n  let drift = 0;"),
  );
  expect(problemsOf(pit)).toEqual([expect.stringContaining(`kvm-core/src/pit.ts: createPit.drift ${cure}kvm-core.ts`)]);
  const pv = withText("kvm-core/guest/vcpu-parts.ts", (text) =>
    text.replace("export interface PvState {", "export interface PvState {\n  stealTime: bigint;"),
  );
  expect(problemsOf(pv)).toEqual([expect.stringContaining("PvState.stealTime is not declared")]);
  const file = withText("kvm-v2/run-loop.ts", (text) => `let runs = 0;\nconst seen = new Set<number>();\n${text}`);
  expect(problemsOf(file)).toEqual([expect.stringContaining("kvm-v2/src/run-loop.ts: (file) (runs, seen) is not declared")]);
});

test("a declaration of what is not there any more is named", () => {
  const without = withText("kvm-v2/vcpu.ts", (text) => text.replace("  tscAdjust = 0n;\n", ""));
  expect(problemsOf(without)).toEqual(["kvm-v2/src/vcpu.ts: Vcpu.tscAdjust is declared in scripts/state, and is not there"]);
});

test("a field that no test moves is named", () => {
  const cases = moveCases.filter(({ name }) => name !== "the time-stamp counter and its adjustment");
  expect(problemsOf(sources, cases)).toEqual([
    expect.stringContaining("field vcpu.tsc.offset: no test moves it"),
    expect.stringContaining("field vcpu.tsc.adjust: no test moves it"),
  ]);
});
