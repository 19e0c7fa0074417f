/** Every field of the portable state crosses, there and back; what a module has nothing for is refused by name. */
import type { Section } from "@mkvm/kvm-abi";
import { describe, expect, test } from "vitest";
import { expand, type SectionField, sectionFields, titleOf } from "../../../scripts/state/section-fields.ts";
import { UNUSED_FIELDS } from "../../kvm-core/src/portable/unused-fields.ts";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { moveCases } from "./moved-state/cases.ts";
import type { MoveCase } from "./moved-state/move-case.ts";
import { MovingVm } from "./moved-state/moving-vm.ts";

type Vendor = "intel" | "amd";
const usual = { irqchip: true, pit: true };

function movingVm(vendor: Vendor, options: MoveCase["vm"] = usual): MovingVm {
  const kernel = new InThreadKernel(vendor);
  return new MovingVm({ kernel, kvm1: kernel.load("kvm1", v1), kvm2: kernel.load("kvm2", v2) }, vendor, options);
}

/** What a VM sends for which nothing was done. */
const untouched = new Map<Vendor, Section[]>();
async function sectionsOfUntouched(vendor: Vendor): Promise<Section[]> {
  const known = untouched.get(vendor);
  if (known) return known;
  const vm = movingVm(vendor);
  await vm.move();
  untouched.set(vendor, vm.moved[0]!);
  return vm.moved[0]!;
}

/** Bytes of a field in a section, of all its entries where it is one of theirs. */
function bytesOf(field: SectionField, section: Section): number[] {
  const { bytes } = section;
  const part = (start: number) =>
    field.places.flatMap(({ offset, bytes: length }) => [...bytes.subarray(start + offset, start + offset + length)]);
  if (!field.inEntries) return part(0);
  const first = 8 + field.layout.fixed.sizeBytes;
  const size = field.layout.entry.sizeBytes;
  return Array.from({ length: (bytes.length - first) / size }, (_, index) => part(first + index * size)).flat();
}

/** The field had another value than in a VM for which nothing was done; than 0 where that has no such section. */
function hadValue(field: SectionField, moved: readonly Section[], before: readonly Section[]): boolean {
  return moved.some((section) => {
    if (titleOf(section as unknown as SectionField["layout"]) !== titleOf(field.layout)) return false;
    const bytes = bytesOf(field, section);
    const other = before.find(
      ({ name, instance, version }) => name === section.name && instance === section.instance && version === section.version,
    );
    if (other === undefined) return section.instance === 0 && bytes.some((byte) => byte !== 0);
    return bytes.join() !== bytesOf(field, other).join();
  });
}

describe.each(["intel", "amd"] as const)("moves there and back on a machine of vendor %s:", (vendor) => {
  const cases = moveCases.filter(({ vendors }) => vendors?.includes(vendor) ?? true);

  test.each(cases)("$name", async ({ moves, vm: options, run }) => {
    const vm = movingVm(vendor, options);
    await run(vm);
    const before = await sectionsOfUntouched(vendor);
    expect(vm.moved.length).toBeGreaterThan(1);
    const unmoved = moves
      .flatMap((pattern) => expand(pattern))
      .filter((field) => !vm.moved.some((moved) => hadValue(field, moved, before)))
      .map(({ name }) => name);
    expect(unmoved, "fields that had no value of their own when they crossed").toEqual([]);
  });
});

test("a VM that has what these modules know nothing of is refused, by the field's name", async () => {
  const vm = movingVm("intel");
  for (const { layout, path, inEntries, missing } of UNUSED_FIELDS) {
    const name = `${layout.name}${inEntries ? "[]" : ""}.${path}`;
    const [field] = sectionFields.filter((each) => each.name === name || each.name.startsWith(`${name}.`));
    const change = (sections: Section[]): Section[] =>
      sections.map((section) => {
        if (section.name !== layout.name) return section;
        const bytes = section.bytes.slice();
        bytes[field!.places[0]!.offset + (inEntries ? 8 + field!.layout.fixed.sizeBytes : 0)] = 1;
        return { ...section, bytes };
      });
    await expect(vm.move({ change })).rejects.toThrow(
      `section ${layout.name}[0] has ${path} set, and this module has no ${missing}`,
    );
  }
  await vm.move();
});
