/**
 * Addresses of more than 48 bits in VMX: host addresses of a processor that has 57, and guest-physical ones that EPT of five levels reach
 * (Intel SDM Vol. 3C, Checks on Host Control Registers, MSRs, and SSP; The Extended Page Table Mechanism (EPT)).
 */
import { describe, expect, it } from "vitest";
import { VmxStatus } from "../src/logical-cpu.ts";
import { ExitReason, VmxError } from "../src/vmx/controls.ts";
import type { VmcsFieldName } from "../src/vmx/fields.ts";
import { guest, HLT } from "./halting-guest.ts";
import { BANK, CODE, type VmxHarness } from "./vmx-harness.ts";

const LA57 = 0x1000;
/** mov eax, [0x40000000] */
const LOAD = [0x8b, 0x04, 0x25, 0, 0, 0, 0x40];
const BEYOND_48 = 1n << 48n;
/** Entry of the guest's tables for its second GiB. */
const SECOND_GIB = 0x2000 + 8;
const WRITE_BACK = 6;
const ACCESSED_DIRTY = 0x40;
const ACCESSED = 0x100;
const levels = (count: number): number => (count - 1) << 3;

const pointTo = (h: VmxHarness, root: number, flags: number): void =>
  h.write("EPT_POINTER", (BigInt(BANK) << 32n) | BigInt(root) | BigInt(flags));

/** The guest's memory as four levels map it, and a page at 2^48 and up, under a fifth. Its root, and where the page is in the bank. */
function fiveLevels(code: readonly number[]): { h: VmxHarness; root: number; page: number } {
  const h = guest(code);
  const root = h.page();
  h.setEntry(root, h.eptRoot | 7);
  const page = h.page();
  let next = page | 0x37;
  for (let level = 1; level <= 4; level++) {
    const table = h.page();
    h.setEntry(table, next);
    next = table | 7;
  }
  h.setEntry(root + 8, next);
  h.bank.view.setBigUint64(h.guestMemory + SECOND_GIB, BEYOND_48 | 0x87n, true);
  h.bank.view.setUint32(page, 0x1357_9bdf, true);
  pointTo(h, root, WRITE_BACK | levels(5));
  return { h, root, page };
}

describe("EPT of five levels", () => {
  it("are announced, and lead to 52 bits of guest-physical address", () => {
    const { h } = fiveLevels([...LOAD, HLT]);
    expect(((h.cpu.rdmsr(0x48c) ?? 0n) >> 6n) & 3n).toBe(3n);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 7 });
    expect(h.cpu.gpr(0)).toBe(0x1357_9bdfn);
  });

  it("reach further than four, for which the address is a violation", () => {
    const { h } = fiveLevels([...LOAD, HLT]);
    pointTo(h, h.eptRoot, WRITE_BACK | levels(4));
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x181, rip: CODE });
    expect(h.read("GUEST_PHYSICAL_ADDRESS")).toBe(2 ** 48);
  });

  it("tell what is not there at the highest level", () => {
    const { h, root } = fiveLevels([...LOAD, HLT]);
    h.setEntry(root + 8, 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x181, rip: CODE });
    const { h: none, root: empty } = fiveLevels([HLT]);
    none.setEntry(empty, 0);
    expect(none.run().reason).toBe(ExitReason.eptViolation);
  });

  it.each([3, 4, 5, 6, 7])("reserve bit %i of their highest entries", (bit) => {
    const { h, root } = fiveLevels([HLT]);
    h.setEntry(root, h.eptRoot | 7 | (1 << bit));
    expect(h.run().reason).toBe(ExitReason.eptMisconfiguration);
  });

  it("mark their highest entries accessed where the pointer asks for it", () => {
    for (const flags of [0, ACCESSED_DIRTY]) {
      const { h, root } = fiveLevels([HLT]);
      pointTo(h, root, WRITE_BACK | levels(5) | flags);
      expect(h.run().reason).toBe(ExitReason.hlt);
      expect((h.bank.u32[root >>> 2] as number) & ACCESSED).toBe(flags === 0 ? 0 : ACCESSED);
      expect((h.bank.u32[(root + 8) >>> 2] as number) & ACCESSED).toBe(0);
    }
  });

  it("take the rights of the highest entry along", () => {
    const { h, root } = fiveLevels([...LOAD, HLT]);
    const low = h.bank.u32[(root + 8) >>> 2] as number;
    // Execute-only
    h.setEntry(root + 8, (low & ~7) | 4);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x181 | (4 << 3) });
  });

  it("are four or five: other lengths of a walk are refused by entries and INVEPT", () => {
    for (const count of [1, 2, 3, 6, 7, 8]) {
      const { h, root } = fiveLevels([HLT]);
      pointTo(h, root, WRITE_BACK | levels(count));
      expect(h.cpu.vmx.vmlaunch()).toBe(VmxStatus.failValid);
      expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidControls);
      const pointer = (BigInt(BANK) << 32n) | BigInt(root | WRITE_BACK | levels(count));
      expect(h.cpu.vmx.invept(1, pointer)).toBe(VmxStatus.failValid);
    }
    const { h, root } = fiveLevels([HLT]);
    for (const count of [4, 5]) {
      const pointer = (BigInt(BANK) << 32n) | BigInt(root | WRITE_BACK | levels(count));
      expect(h.cpu.vmx.invept(1, pointer)).toBe(VmxStatus.succeed);
    }
  });
});

describe("host addresses", () => {
  const enters = (write: (h: VmxHarness) => void): boolean => {
    const h = guest([HLT]);
    write(h);
    const status = h.cpu.vmx.vmlaunch();
    if (status === VmxStatus.failValid) expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidHostState);
    else expect(h.read("EXIT_REASON")).toBe(ExitReason.hlt);
    return status === VmxStatus.succeed;
  };
  const kept: readonly VmcsFieldName[] = [
    "HOST_FS_BASE",
    "HOST_GS_BASE",
    "HOST_TR_BASE",
    "HOST_GDTR_BASE",
    "HOST_IDTR_BASE",
    "HOST_SYSENTER_ESP",
    "HOST_SYSENTER_EIP",
  ];

  it.each(kept)("%s has as many bits as the processor, whatever CR4.LA57 says", (field) => {
    for (const la57 of [0, LA57]) {
      const enter = (value: bigint): boolean =>
        enters((h) => {
          h.write("HOST_CR4", h.read("HOST_CR4") | la57);
          h.write(field, value);
        });
      expect([1n << 47n, 1n << 55n, 0xff00_0000_0000_0000n].map(enter)).toEqual([true, true, true]);
      expect([1n << 56n, 1n << 60n, 0xfe00_0000_0000_0000n].map(enter)).toEqual([false, false, false]);
    }
  });

  it("HOST_RIP has as many as CR4.LA57 of the host gives it", () => {
    const enter = (la57: number, rip: bigint): boolean =>
      enters((h) => {
        h.write("HOST_CR4", h.read("HOST_CR4") | la57);
        h.write("HOST_RIP", rip);
      });
    for (const rip of [1n << 46n, 0xffff_8000_0000_0000n]) expect([enter(0, rip), enter(LA57, rip)]).toEqual([true, true]);
    for (const rip of [1n << 47n, 1n << 55n, 0xffff_7fff_ffff_ffffn, 0xff00_0000_0000_0000n])
      expect([enter(0, rip), enter(LA57, rip)]).toEqual([false, true]);
    for (const rip of [1n << 56n, 0xfe00_0000_0000_0000n]) expect([enter(0, rip), enter(LA57, rip)]).toEqual([false, false]);
  });

  it("may be of another paging mode than the one that the entry is from", () => {
    const h = guest([HLT]);
    const before = h.cpu.cr4;
    h.write("HOST_CR4", before | BigInt(LA57));
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.cpu.cr4).toBe(before | BigInt(LA57));
  });
});
