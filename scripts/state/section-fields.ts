/** The fields of the portable state, by the names that declarations and tests use: "vcpu.registers.regs.rax", "vm.memory-slots[].slot". */

import type { Fields, SectionLayout } from "@mkvm/kvm-abi";
import * as abi from "@mkvm/kvm-abi";

export interface SectionField {
  /** Of versions before the last one with the version: "vcpu.fpu@1.fxsave". */
  readonly name: string;
  readonly layout: SectionLayout;
  /** From the start of a section's bytes; within an entry for fields of entries. */
  readonly places: readonly { readonly offset: number; readonly bytes: number }[];
  readonly inEntries: boolean;
  /** No state: room that is zero. */
  readonly reserved: boolean;
}

/** A section's name with its version where there is a later one. */
export function titleOf(layout: SectionLayout): string {
  const last = layouts.findLast(({ name }) => name === layout.name)!;
  return layout.version === last.version ? layout.name : `${layout.name}@${layout.version}`;
}

/** Every layout that the ABI exports, by name and version. */
export const layouts: readonly SectionLayout[] = Object.values(abi as Record<string, unknown>)
  .filter(isLayout)
  .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.version - b.version));

function isLayout(value: unknown): value is SectionLayout {
  return typeof value === "object" && value !== null && "encode" in value && "decode" in value && "entry" in value;
}

const RESERVED = /^(reserved|pad\d*|padding|_\w*)$/;

export const sectionFields: readonly SectionField[] = layouts.flatMap((layout) => [
  ...leaves(layout.fixed.fields, abi.SectionHead.sizeBytes, `${titleOf(layout)}.`).map((leaf) => ({
    ...leaf,
    layout,
    inEntries: false,
  })),
  ...leaves(layout.entry.fields, 0, `${titleOf(layout)}[].`).map((leaf) => ({ ...leaf, layout, inEntries: true })),
]);

function leaves(fields: Fields, base: number, prefix: string): Pick<SectionField, "name" | "places" | "reserved">[] {
  return Object.entries(fields).flatMap(([key, field]) => {
    const name = `${prefix}${key}`;
    if (field.struct === undefined) {
      return [{ name, places: [{ offset: base + field.offset, bytes: field.sizeBytes }], reserved: RESERVED.test(key) }];
    }
    const count = field.count ?? 1;
    const size = field.sizeBytes / count;
    const first = leaves(field.struct.fields, base + field.offset, `${name}.`);
    // Of an array of structures each field is one, in as many places
    return first.map((leaf) => ({
      ...leaf,
      places: Array.from({ length: count }, (_, index) =>
        leaf.places.map(({ offset, bytes }) => ({ offset: offset + index * size, bytes })),
      ).flat(),
    }));
  });
}

/** Names for which a pattern stands: one, or with `.*` all below. */
export function expand(pattern: string): SectionField[] {
  const found = pattern.endsWith(".*")
    ? sectionFields.filter(({ name, reserved }) => name.startsWith(pattern.slice(0, -1)) && !reserved)
    : sectionFields.filter(({ name }) => name === pattern);
  if (found.length === 0) throw new Error(`no section has a field ${pattern}`);
  return found;
}
