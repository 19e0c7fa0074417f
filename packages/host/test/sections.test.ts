import { describe, expect, it } from "vitest";
import { featureLevel, firstDifference, firstUnknownSection } from "../src/upgrade/sections.ts";

const section = (bytes: number[], more: object = {}) => ({
  name: "vcpu.registers",
  instance: 1,
  version: 2,
  required: true,
  bytes: Uint8Array.from(bytes),
  ...more,
});

describe("sections", () => {
  it("are equal only to the byte, and the first difference is named", () => {
    const sent = [section([1, 2, 3])];
    expect(firstDifference(sent, [section([1, 2, 3])])).toBeUndefined();
    expect(firstDifference(sent, [section([1, 9, 3])])).toBe("section vcpu.registers[1] differs at byte 1: 0x09, was 0x02");
    expect(firstDifference(sent, [section([1, 2])])).toBe("section vcpu.registers[1] has 2 bytes, was 3");
    expect(firstDifference(sent, [])).toBe("section vcpu.registers[1] is on one side only");
    expect(firstDifference(sent, [section([1, 2, 3], { version: 3 })])).toBe(
      "section vcpu.registers[1] came back in version 3, was 2",
    );
    expect(firstDifference(sent, [section([1, 2, 3], { instance: 0 })])).toBe(
      "section vcpu.registers[1] came back as vcpu.registers[0]",
    );
    expect(firstDifference(sent, [section([1, 2, 3], { required: false })])).toContain("required on one side only");
  });

  it("that are required must be known, at both ends of the range of versions", () => {
    const vm = (version: number, required = true) => ({
      sections: [{ name: "vm.shape", instance: 0, version, required }],
      early: [],
    });
    const receives = [{ name: "vm.shape", minVersion: 2, maxVersion: 3 }];
    expect(firstUnknownSection(vm(2), receives, "kvm2")).toBeUndefined();
    expect(firstUnknownSection(vm(3), receives, "kvm2")).toBeUndefined();
    expect(firstUnknownSection(vm(1), receives, "kvm2")).toBe(
      "kvm2 takes section vm.shape in versions 2 to 3, and it comes in version 1",
    );
    expect(firstUnknownSection(vm(4), receives, "kvm2")).toContain("comes in version 4");
    expect(firstUnknownSection(vm(1), [], "kvm2")).toBe("kvm2 does not know the required section vm.shape");
    expect(firstUnknownSection(vm(1, false), [], "kvm2")).toBeUndefined();
  });

  it("stay at what all modules of an unfinished move know", () => {
    const one = [
      { name: "a", minVersion: 1, maxVersion: 3 },
      { name: "b", minVersion: 1, maxVersion: 1 },
    ];
    const two = [
      { name: "a", minVersion: 2, maxVersion: 5 },
      { name: "b", minVersion: 2, maxVersion: 2 },
      { name: "c", minVersion: 1, maxVersion: 1 },
    ];
    expect(featureLevel([two])).toEqual(two);
    expect(featureLevel([one, two])).toEqual([{ name: "a", minVersion: 2, maxVersion: 3 }]);
    expect(featureLevel([two, one])).toEqual([{ name: "a", minVersion: 2, maxVersion: 3 }]);
  });
});
