import { describe, expect, test } from "vitest";
import { comparePackages, ruleGroups } from "../src/index.ts";
import { classOf, type Finding } from "../src/rules/rule.ts";
import { declarationsOf, others, stateOf } from "./mutations/base.ts";
import { binaryMutations } from "./mutations/binary-mutations.ts";
import { packageMutations } from "./mutations/package-mutations.ts";
import { typeMutations } from "./mutations/type-mutations.ts";

/** The finding that the mutation must have, and nothing that reaches farther. */
function judge(
  findings: readonly Finding[],
  expected: { class: string | undefined; rule: string | undefined; subject?: string },
): void {
  const said = findings.map(({ rule, class: reach, subject, detail }) => `${reach} ${rule} ${subject}: ${detail}`);
  expect(classOf(findings), said.join("\n")).toBe(expected.class);
  if (expected.rule === undefined) expect(said).toEqual([]);
  else
    expect(
      findings.map(({ rule }) => rule),
      said.join("\n"),
    ).toContain(expected.rule);
  if (expected.subject !== undefined)
    expect(findings.filter(({ rule }) => rule === expected.rule).map(({ subject }) => subject)).toContain(expected.subject);
}

function edited(text: string, edits: readonly (readonly [was: string, is: string])[]): string {
  return edits.reduce((before, [was, is]) => {
    expect(before, `the built declarations hold ${was}`).toContain(was);
    return before.replace(was, is);
  }, text);
}

describe("declarations", () => {
  test.each(typeMutations)("$package: $name", (mutation) => {
    const { package: name, given = [], edits } = mutation;
    const before = edited(declarationsOf(name), given);
    const after = edited(before, edits);
    judge(comparePackages(stateOf(name, { declarations: before }), stateOf(name, { declarations: after }), others), mutation);
  });
});

describe("binary surfaces", () => {
  test.each(binaryMutations)("$package: $name", (mutation) => {
    const { package: name, change } = mutation;
    judge(comparePackages(stateOf(name), stateOf(name, { binary: change }), others), mutation);
  });
});

describe("package.json", () => {
  test.each(packageMutations)("$name", (mutation) => {
    const { package: name, change, given = () => {} } = mutation;
    const after = stateOf(name, {
      manifest: (manifest) => {
        given(manifest);
        change(manifest);
      },
    });
    judge(comparePackages(stateOf(name, { manifest: given }), after, others), mutation);
  });
});

test("a package that did not change has no findings", () => {
  for (const name of ["@mkvm/kvm-abi", "@mkvm/vac", "@mkvm/host", "@mkvm/hw-x86", "@mkvm/kvm-v1"])
    expect(comparePackages(stateOf(name), stateOf(name), others)).toEqual([]);
});

test("every rule about types, bytes and package.json has a mutation that only it names", () => {
  const shown = new Set([...typeMutations, ...binaryMutations, ...packageMutations].map(({ rule }) => rule));
  // These are about whole workspaces: the tests of the check show them
  const elsewhere = ["package-added", "package-removed", "built-output-changed"];
  const rules = ruleGroups.flatMap((group) => group.rules.map(({ id }) => id));
  expect(rules.filter((id) => !elsewhere.includes(id) && !shown.has(id as never))).toEqual([]);
});
