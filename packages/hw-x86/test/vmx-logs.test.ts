/** Page-modification logging and PAUSE-loop exiting under VMX. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { ExitReason, Secondary, VmxError } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { BANK, VmxHarness } from "./vmx-harness.ts";

const HLT = 0xf4;
const ACCESSED_DIRTY = 0x40n;

function guest(...code: number[]): VmxHarness {
  const h = new VmxHarness({
    mode: "long",
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  return h;
}
/** mov [address], al */
const store = (address: number): number[] => [0x88, 0x04, 0x25, address & 0xff, (address >> 8) & 0xff, address >> 16, 0];

describe("page-modification logging", () => {
  function logging(...code: number[]): { h: VmxHarness; log: number } {
    const h = guest(...code);
    const log = h.page();
    h.setControl("SECONDARY_CONTROLS", Secondary.enablePml);
    h.write("PML_ADDRESS", (BigInt(BANK) << 32n) | BigInt(log));
    h.write("GUEST_PML_INDEX", 511);
    h.write("EPT_POINTER", (BigInt(BANK) << 32n) | BigInt(h.eptRoot) | 0x1en | ACCESSED_DIRTY);
    return { h, log };
  }
  const logged = (h: VmxHarness, log: number): number[] => {
    const all: number[] = [];
    for (let index = 511; index > (h.read("GUEST_PML_INDEX") & 0xffff) % 0xffff; index--)
      all.push(Number(h.bank.view.getBigUint64(log + index * 8, true)));
    return all;
  };

  it("notes each page once, when its dirty flag is set, walks of guest tables included", () => {
    const { h, log } = logging(...store(0x10_0000), ...store(0x10_0ff0), ...store(0x10_2000), ...store(0x10_0001), HLT);
    expect(h.run().reason).toBe(ExitReason.hlt);
    const pages = logged(h, log);
    expect(pages.filter((page) => page >= 0x10_0000)).toEqual([0x10_0000, 0x10_2000]);
    expect(new Set(pages).size).toBe(pages.length);
  });

  it("exits when the log is full, with nothing done", () => {
    const { h, log } = logging(...store(0x10_0000), ...store(0x10_2000), HLT);
    // Whatever the guest's page tables take comes before
    expect(h.run().reason).toBe(ExitReason.hlt);
    for (const gpa of [0x10_0000, 0x10_2000]) h.map(gpa, h.guestMemory + gpa, 0x37);
    h.expect(h.cpu.vmx.invept(2, 0n), "INVEPT");
    h.write("GUEST_RIP", 0x8000);
    h.write("GUEST_PML_INDEX", 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.pageModificationLogFull, rip: 0x8007 });
    expect(h.read("GUEST_PML_INDEX")).toBe(0xffff);
    expect(h.bank.u32[log >>> 2]).toBe(0x10_0000);
    expect((h.bank.u32[h.eptEntry(0x10_2000) >>> 2] as number) & 0x200).toBe(0);
    h.write("GUEST_PML_INDEX", 511);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.bank.u32[(log + 511 * 8) >>> 2]).toBe(0x10_2000);
  });

  it("needs a page for the log", () => {
    const { h } = logging(HLT);
    h.write("PML_ADDRESS", 8n);
    expect(h.cpu.vmx.vmlaunch()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidControls);
  });
});

describe("PAUSE-loop exiting", () => {
  const LOOP = [0xf3, 0x90, 0xeb, 0xfc];
  it("exits from a loop of PAUSEs that lasts longer than the window", () => {
    const h = guest(...LOOP);
    h.setControl("SECONDARY_CONTROLS", Secondary.pauseLoopExiting);
    h.write("PLE_GAP", 1000);
    h.write("PLE_WINDOW", 20_000);
    expect(h.run()).toMatchObject({ reason: ExitReason.pause, rip: 0x8000, instructionLength: 2 });
    const first = h.cpu.retiredInstructions();
    expect(first).toBeGreaterThan(10);
    // The next loop begins anew
    expect(h.run().reason).toBe(ExitReason.pause);
    expect(h.cpu.retiredInstructions() - first).toBeGreaterThan(10);
  });
  it("does not where PAUSEs are far between", () => {
    // mov ecx, 200; L: pause; mov edx, 500; M: dec edx; jnz M; dec ecx; jnz L; hlt
    const h = guest(0xb9, 200, 0, 0, 0, 0xf3, 0x90, 0xba, 0xf4, 1, 0, 0, 0xff, 0xca, 0x75, 0xfc, 0xff, 0xc9, 0x75, 0xf1, HLT);
    h.setControl("SECONDARY_CONTROLS", Secondary.pauseLoopExiting);
    h.write("PLE_GAP", 100);
    h.write("PLE_WINDOW", 1000);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });
});
