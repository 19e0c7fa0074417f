/** Nested page tables of five levels, where the host's own paging has as many (AMD64 APM Vol. 2, Nested Paging). */
import { describe, expect, it } from "vitest";
import { createLogicalCpu } from "../src/create-logical-cpu.ts";
import { Engine } from "../src/engine/engine.ts";
import { createMachine } from "../src/machine.ts";
import { ExitCode } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { CODE, SvmHarness } from "./svm-harness.ts";

const LA57 = 0x1000n;
const HLT = 0xf4;
/** mov eax, [0x40000000] */
const LOAD = [0x8b, 0x04, 0x25, 0, 0, 0, 0x40];
const BEYOND_48 = 2 ** 48;
/** Entry of the guest's tables for its second GiB. */
const SECOND_GIB = 0x2000 + 8;
const [ACCESSED, DIRTY] = [0x20, 0x40];
/** EXITINFO1: the guest's final address, and its table walk; of a user access. */
const FINAL = 0x1_0000_0004n;
const [PRESENT, WRITE, RESERVED] = [1n, 2n, 8n];

/** A guest whose second GiB begins at guest-physical 2^48, where one page lies in the bank. */
function fiveLevels(code: readonly number[], pagingLevels: 4 | 5 = 5): { h: SvmHarness; page: number } {
  const h = new SvmHarness({
    mode: "long",
    pagingLevels,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  h.bank.view.setBigUint64(h.guestMemory + SECOND_GIB, BigInt(BEYOND_48) | 0x87n, true);
  const page = h.page();
  h.bank.view.setUint32(page, 0x1357_9bdf, true);
  if (pagingLevels === 5) h.map(BEYOND_48, page, 7);
  return { h, page };
}
const low = (h: SvmHarness, entry: number): number => h.bank.u32[entry >>> 2] as number;

describe("nested page tables of a host with five levels", () => {
  it("lead to 52 bits of guest-physical address", () => {
    const { h } = fiveLevels([...LOAD, HLT]);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: CODE + 7 });
    expect(h.cpu.gpr(0)).toBe(0x1357_9bdfn);
  });

  it("reach further than four, for which the address is a fault", () => {
    const { h } = fiveLevels([...LOAD, HLT], 4);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: FINAL, info2: BigInt(BEYOND_48), rip: CODE });
  });

  it("tell what is not there at the highest level", () => {
    const { h } = fiveLevels([...LOAD, HLT]);
    h.setEntry(h.nptEntry(BEYOND_48, 4), 0);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: FINAL, info2: BigInt(BEYOND_48) });
    const { h: none } = fiveLevels([HLT]);
    none.setEntry(none.nptEntry(0, 4), 0);
    expect(none.run().code).toBe(ExitCode.nestedPageFault);
  });

  it.each([3, 4])("have no large pages at level %i", (level) => {
    const { h } = fiveLevels([...LOAD, HLT]);
    const entry = h.nptEntry(BEYOND_48, level);
    h.setEntry(entry, low(h, entry) | 0x80);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: FINAL | PRESENT | RESERVED });
  });

  it("mark their highest entries accessed, and take their rights along", () => {
    const { h } = fiveLevels([...LOAD, 0x89, ...LOAD.slice(1), HLT]); // mov [0x40000000], eax
    const entry = h.nptEntry(BEYOND_48, 4);
    h.setEntry(entry, low(h, entry) & ~2);
    expect(low(h, entry) & ACCESSED).toBe(0);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: FINAL | PRESENT | WRITE, rip: CODE + 7 });
    expect(low(h, entry) & (ACCESSED | DIRTY)).toBe(ACCESSED);
    h.setEntry(entry, low(h, entry) & ~4);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, rip: CODE + 7 });
  });
});

describe("the levels of a machine's own paging", () => {
  it.each(["intel", "amd"] as const)("are in CR4.LA57 from power-on on, which stays (%s)", (vendor) => {
    for (const pagingLevels of [4, 5] as const) {
      const cpu = createLogicalCpu(createMachine({ vendor, pagingLevels }), 0, () => undefined);
      const expected = pagingLevels === 5 ? LA57 : 0n;
      expect(cpu.cr4 & LA57).toBe(expected);
      cpu.cr4 = cpu.cr4 ^ LA57;
      expect(cpu.cr4 & LA57).toBe(expected);
    }
  });
  it("are four or five", () => {
    expect(() => createMachine({ pagingLevels: 3 as never })).toThrow("a kernel's paging has 4 or 5 levels, not 3");
  });
});
