import { describe, expect, it } from "vitest";
import { struct, u32, u64 } from "../src/layout.ts";
import { differenceOf, refusalOf, sectionList } from "../src/section-codec.ts";
import { NO_DEADLINE, SECTIONS, supportOf, VcpuLapic, VcpuMsrs, VmClock, VmMemorySlots } from "../src/sections.ts";

describe("sections", () => {
  it("have names of their own, are required but for statistics, and no layout is repeated by accident", () => {
    const names = SECTIONS.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    expect(SECTIONS.filter(({ required }) => !required).map(({ name }) => name)).toEqual(["vm.statistics", "vcpu.statistics"]);
    for (const { name, fixed } of SECTIONS) expect(fixed.sizeBytes % 8, name).toBe(0);
  });
  it("come back as they went in", () => {
    const clock = VmClock.encode(0, { kvmclock_offset: -5n, master_tsc: 7n });
    expect(VmClock.decode(clock)).toEqual({
      fixed: { kvmclock_offset: -5n, master_monotonic_ns: 0n, master_tsc: 7n, use_master_clock: 0, reserved: 0 },
      entries: [],
    });
    const entries = [
      { index: 1, reserved: 0, data: 2n },
      { index: 3, reserved: 0, data: 0xffff_ffff_ffff_ffffn },
    ];
    const msrs = VcpuMsrs.encode(2, {}, entries);
    expect(msrs).toMatchObject({ name: "vcpu.msrs", instance: 2, version: 1, required: true });
    expect(VcpuMsrs.find([clock, msrs], 2)).toEqual({ fixed: { reserved: 0n }, entries });
    expect(VcpuLapic.decode(VcpuLapic.encode(0, { deadline: NO_DEADLINE }))).toMatchObject({ fixed: { deadline: -1n } });
  });
  it("give equal bytes for equal values", () => {
    const value = { slot: 3, guest_phys_addr: 0x1000n, memory_size: 0x2000n };
    const [a, b] = [VmMemorySlots.encode(0, {}, [value]), VmMemorySlots.encode(0, {}, [{ ...value }])];
    expect(differenceOf([a], [b])).toBeUndefined();
  });
  it("are refused in words when they are another, of another version, cut short or missing", () => {
    const good = VmClock.encode(0, {});
    expect(VmClock.decode({ ...good, name: "vm.pit" })).toBe("section vm.pit[0] where vm.clock was expected");
    expect(VmClock.decode({ ...good, version: 2 })).toBe("section vm.clock[0] has version 2; this side takes 1");
    expect(VmClock.decode({ ...good, bytes: good.bytes.subarray(0, 7) })).toContain("cut short: 7 bytes");
    expect(VmClock.decode({ ...good, bytes: good.bytes.subarray(0, 39) })).toContain("39 bytes where 0 entries take 40");
    const other = VmClock.encode(0, {});
    other.bytes[0] = 8;
    expect(VmClock.decode(other)).toContain("fixed part of 8 bytes, not 32");
    const many = VcpuMsrs.encode(0, {});
    many.bytes[4] = 1;
    expect(VcpuMsrs.decode(many)).toContain("1 entries take 32");
    expect(VmClock.find([good], 1)).toBe("section vm.clock[1] is missing");
  });
});

describe("refusals and differences", () => {
  const Future = sectionList("vm.future", {
    version: 3,
    required: true,
    fixed: struct("f", 8, { x: u64(0) }),
    entry: struct("e", 4, { y: u32(0) }),
  });
  it("name the section that a receiver cannot take", () => {
    const receives = supportOf(SECTIONS);
    const describe_ = (sections: { name: string; version: number; required: boolean }[]) => ({
      sections: sections.map((each) => ({ ...each, instance: 0 })),
    });
    expect(refusalOf(describe_([VmClock]), receives)).toBeUndefined();
    expect(refusalOf(describe_([Future]), receives)).toBe("it does not know section vm.future, which the VM needs");
    expect(refusalOf(describe_([{ ...Future, required: false }]), receives)).toBeUndefined();
    expect(refusalOf(describe_([{ ...VmClock, version: 2 }]), receives)).toContain("in versions 1 to 1, the VM sends 2");
    const wider = [{ name: "vm.clock", minVersion: 2, maxVersion: 3 }];
    expect(refusalOf(describe_([VmClock]), wider)).toContain("in versions 2 to 3, the VM sends 1");
    expect(refusalOf(describe_([{ ...VmClock, version: 3 }]), wider)).toBeUndefined();
  });
  it("name the byte that differs", () => {
    const a = Future.encode(0, { x: 1n }, [{ y: 2 }]);
    const b = Future.encode(0, { x: 1n }, [{ y: 3 }]);
    expect(differenceOf([a], [b])).toBe("section vm.future[0] differs at byte 16: 2 was sent, 3 came back");
    expect(differenceOf([a], [])).toContain("1 sections were sent, 0 came back");
    expect(differenceOf([a], [{ ...a, instance: 1 }])).toContain("came back as vm.future[1]");
    expect(differenceOf([a], [{ ...a, version: 2 }])).toContain("version 2, not 3");
    expect(differenceOf([a], [{ ...a, bytes: new Uint8Array(3) }])).toContain("3 bytes, not 20");
  });
});
