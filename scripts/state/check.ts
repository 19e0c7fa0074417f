/**
 * Whether a move forgets nothing: each field of the ABI's sections has a test that moves it, or a reason why nobody can set it;
 * each field of what holds state in a module is carried by a section, held by another, or made anew for a reason.
 */
import { CONSTANT_FIELDS, UNUSED_FIELDS } from "../../packages/kvm-core/src/portable/unused-fields.ts";
import { moveCases } from "../../packages/kvm-v1/test/moved-state/cases.ts";
import type { MoveCase } from "../../packages/kvm-v1/test/moved-state/move-case.ts";
import type { Declarations, Fate } from "./declaration.ts";
import { kvmCore } from "./kvm-core.ts";
import { kvmV1 } from "./kvm-v1.ts";
import { kvmV2 } from "./kvm-v2.ts";
import { findStateHolders, type SourceText, type StateHolder } from "./scan.ts";
import { expand, type SectionField, sectionFields } from "./section-fields.ts";

/** By package. */
export const declarations: Readonly<Record<string, Declarations>> = {
  "kvm-core": kvmCore,
  "kvm-v1": kvmV1,
  "kvm-v2": kvmV2,
};

/** The same on both sides of a move, or the receiver refuses: there is nothing to set. */
const AGREED: Readonly<Record<string, string>> = {
  "vm.shape.tsc_khz": "rate of the machine's TSC",
  "vcpu.tsc.khz": "rate of the machine's TSC; a receiver with another refuses",
  "vcpu.run-page.size_bytes": "size of the pages that a vCPU shares with its VMM, a constant of the ABI",
  "vcpu.events.events.flags": "says that all fields are valid",
  "vm.irqchip.pic_master.elcr_mask": "lines that cannot be level triggered: wired in the chip",
  "vm.irqchip.pic_slave.elcr_mask": "lines that cannot be level triggered: wired in the chip",
  "vm.statistics[].bucket": "no statistic of a VM is a histogram",
};

export interface FieldRow {
  readonly field: SectionField;
  /** Names of the cases that move it. */
  readonly tests: readonly string[];
  /** Why there is none. */
  readonly reason: string | undefined;
}

/** Each field that is not reserved, with its tests. */
export function fieldRows(cases: readonly MoveCase[] = moveCases): FieldRow[] {
  const tests = new Map<string, string[]>();
  for (const { name, moves } of cases)
    for (const field of moves.flatMap(expand)) tests.set(field.name, [...(tests.get(field.name) ?? []), name]);
  return sectionFields
    .filter(({ reserved }) => !reserved)
    .map((field) => ({ field, tests: tests.get(field.name) ?? [], reason: AGREED[field.name] ?? unusedReason(field) }));
}

function unusedReason({ name }: SectionField): string | undefined {
  const constant = CONSTANT_FIELDS.find(({ layout, path }) => `${layout.name}.${path}` === name);
  if (constant) return `always ${constant.value}: ${constant.why}; another value is refused`;
  const unused = UNUSED_FIELDS.find(({ layout, path, inEntries }) => {
    const full = `${layout.name}${inEntries ? "[]" : ""}.${path}`;
    return name === full || name.startsWith(`${full}.`);
  });
  return unused && `refused when set, since no module has it: ${unused.missing}`;
}

/** What is missing; empty when nothing is. */
export function problemsOf(
  sources: readonly SourceText[],
  cases: readonly MoveCase[] = moveCases,
  declared: Readonly<Record<string, Declarations>> = declarations,
): string[] {
  const holders = findStateHolders(sources);
  return [...fieldProblems(cases), ...holderProblems(holders, declared), ...fateProblems(holders, declared)];
}

function fieldProblems(cases: readonly MoveCase[]): string[] {
  return fieldRows(cases).flatMap(({ field, tests, reason }) => {
    if (tests.length === 0 && reason === undefined)
      return [
        `field ${field.name}: no test moves it; add a case to packages/kvm-v1/test/moved-state, or to unused-fields.ts why nobody can set it`,
      ];
    if (tests.length > 0 && reason !== undefined)
      return [`field ${field.name}: '${tests[0]}' moves it, and it is declared as ${reason}`];
    return [];
  });
}

const keyOf = ({ file, name }: StateHolder): string => `${file} ${name}`;

function holderProblems(holders: readonly StateHolder[], declared: Readonly<Record<string, Declarations>>): string[] {
  const problems: string[] = [];
  for (const holder of holders) {
    const fates = declared[holder.package]?.[keyOf(holder)];
    const where = `${holder.package}/src/${holder.file}: ${holder.name}`;
    const cure = `say in scripts/state/${holder.package}.ts which section carries it, or why it is made anew`;
    if (fates === undefined) {
      problems.push(`${where} (${holder.fields.join(", ")}) is not declared: ${cure}`);
      continue;
    }
    for (const field of holder.fields)
      if (!Object.hasOwn(fates, field)) problems.push(`${where}.${field} is not declared: ${cure}`);
    for (const field of Object.keys(fates))
      if (!holder.fields.includes(field)) problems.push(`${where}.${field} is declared in scripts/state, and is not there`);
  }
  for (const [name, each] of Object.entries(declared)) {
    for (const key of Object.keys(each))
      if (!holders.some((holder) => holder.package === name && keyOf(holder) === key))
        problems.push(`${name}: '${key}' is declared in scripts/state, and is not there`);
  }
  return problems;
}

function fateProblems(holders: readonly StateHolder[], declared: Readonly<Record<string, Declarations>>): string[] {
  const problems: string[] = [];
  const names = new Set(holders.map(({ name }) => name));
  const carriers = new Set<string>();
  const look = (where: string, fate: Fate): void => {
    if (fate.kind === "held") {
      for (const holder of fate.in) if (!names.has(holder)) problems.push(`${where} is held in ${holder}, which is not there`);
    } else if (fate.kind === "carried") {
      for (const pattern of fate.by) {
        try {
          for (const { name } of expand(pattern)) carriers.add(name);
        } catch {
          problems.push(`${where} is carried by ${pattern}, and no section has such a field`);
        }
      }
    }
  };
  for (const [name, each] of Object.entries(declared))
    for (const [key, fates] of Object.entries(each))
      for (const [field, fate] of Object.entries(fates)) look(`${name}: ${key}.${field}`, fate);
  for (const { field, reason } of fieldRows())
    if (reason === undefined && !carriers.has(field.name) && !DERIVED_FROM_VM.has(field.name))
      problems.push(`field ${field.name} carries nothing that a module declares`);
  return problems;
}

/** Fields that say what a VM is as a whole, and no variable holds. */
const DERIVED_FROM_VM = new Set([
  "vm.shape.abi_feature_level", // the level of the sections that are sent
  "vcpu.pending-exit[].is_write", // which of two lists of the emulator the access is in
]);
