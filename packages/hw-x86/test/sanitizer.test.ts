/** Findings of the hardware sanitizer: each test commits the very mistake, and its pair does not. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { Engine } from "../src/engine/engine.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { Control, Save } from "../src/svm/vmcb.ts";
import { VmcsField } from "../src/vmx/fields.ts";
import { engineMode } from "./engine-mode.ts";
import { SvmHarness } from "./svm-harness.ts";
import { BANK, CODE, VmxHarness } from "./vmx-harness.ts";

function harness(): VmxHarness {
  return new VmxHarness({ mode: "long", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
}
const findings = (h: VmxHarness): string[] => h.log.filter((line) => line.startsWith("cpu0: sanitizer:"));

describe("VMXOFF", () => {
  it("is told of under the feet of a VMCS that was never cleared, once", () => {
    const h = harness();
    h.load([0xf4]);
    h.run();
    h.expect(h.cpu.vmx.vmxoff(), "VMXOFF");
    expect(findings(h)).toEqual([
      `cpu0: sanitizer: VMXOFF on CPU 0 under the feet of VMCS ${h.vmcs.toString(16)}, active there and not cleared`,
    ]);
    const region = h.page();
    h.bank.u32[region >>> 2] = Number((h.cpu.rdmsr(0x480) ?? 0n) & 0x7fff_ffffn);
    h.expect(h.cpu.vmx.vmxon(hpa(BANK, region)), "VMXON");
    h.expect(h.cpu.vmx.vmxoff(), "VMXOFF");
    expect(findings(h)).toHaveLength(1);
  });

  it("is silent when all were cleared", () => {
    const h = harness();
    h.load([0xf4]);
    h.run();
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    h.expect(h.cpu.vmx.vmxoff(), "VMXOFF");
    expect(findings(h)).toEqual([]);
  });
});

describe("a VPID", () => {
  /** A second VMCS, as the first one was before its launch, so with its VPID. */
  function twice(): { h: VmxHarness; run(): void } {
    const h = harness();
    h.load([0xf4]);
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    const first = Number(h.vmcs) % 0x1_0000_0000;
    const copy = h.page();
    h.bank.u8.copyWithin(copy, first, first + 4096);
    h.expect(h.cpu.vmx.vmptrld(h.vmcs), "VMPTRLD");
    h.run();
    const run = (): void => {
      h.expect(h.cpu.vmx.vmptrld(hpa(BANK, copy)), "VMPTRLD");
      h.expect(h.cpu.vmx.vmlaunch(), "VMLAUNCH");
    };
    return { h, run };
  }
  it("is told of when another VMCS uses it without INVVPID", () => {
    const { h, run } = twice();
    run();
    expect(findings(h)).toHaveLength(1);
    expect(findings(h)[0]).toMatch(/VPID 1 used on CPU 0 by VMCS 3\w+ after VMCS 3\w+, without INVVPID between/);
  });
  it.each([
    ["its own", 1],
    ["all of them", 2],
  ] as const)("changes hands in silence behind INVVPID of %s", (_what, type) => {
    const { h, run } = twice();
    h.expect(h.cpu.vmx.invvpid(type, type === 1 ? 1 : 0, 0n), "INVVPID");
    run();
    expect(findings(h)).toEqual([]);
  });
});

describe("an ASID", () => {
  function twice(flush: number): string[] {
    const h = new SvmHarness({ mode: "long", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
    h.load([0xf4]);
    const first = Number(h.vmcb) % 0x1_0000_0000;
    const copy = h.page();
    h.bank.u8.copyWithin(copy, first, first + 4096);
    h.run();
    h.bank.u8[copy + Control.TLB_CONTROL] = flush;
    h.cpu.svm.stgi();
    h.cpu.svm.vmrun(hpa(BANK, copy));
    return h.log.filter((line) => line.includes("sanitizer"));
  }
  it("is told of when another VMCB uses it without a flush", () => {
    expect(twice(0)).toHaveLength(1);
    expect(twice(0)[0]).toMatch(/ASID 1 used on CPU 0 by VMCB 3\w+ after VMCB 3\w+, without a flush between/);
  });
  it("is told of where global translations are kept, and not behind a flush of it or of all", () => {
    expect([7, 3, 1].map((flush) => twice(flush).length)).toEqual([1, 0, 0]);
  });
});

describe("a loss of power", () => {
  it("is told of under the feet of a VMCS that was never cleared", () => {
    const h = harness();
    h.load([0xf4]);
    h.run();
    h.cpu.losePower();
    expect(findings(h)).toEqual([
      `cpu0: sanitizer: power goes off at CPU 0 under the feet of VMCS ${h.vmcs.toString(16)}, active there and not cleared`,
    ]);
  });

  it("ends VMX operation, and leaves registers as after power-up, memory as it was, and the TSC counting on", () => {
    const h = harness();
    h.load([0xf4]);
    h.run();
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    h.expect(h.cpu.vmx.vmxoff(), "VMXOFF");
    h.cpu.setGpr(3, 0x1234n);
    expect(h.cpu.wrmsr(0xc000_0082, 0x5678n)).toBe(true);
    h.cpu.sendIpi(0);
    const tsc = h.cpu.rdtsc();
    const guest = h.bank.u8[h.guestMemory + CODE];
    h.cpu.losePower();
    expect(findings(h)).toEqual([]);
    expect(h.cpu.gpr(3)).toBe(0n);
    expect(h.cpu.rdmsr(0xc000_0082)).toBe(0n);
    expect(h.cpu.interruptPending()).toBe(false);
    expect(h.cpu.rdtsc()).toBeGreaterThanOrEqual(tsc);
    expect(h.bank.u8[h.guestMemory + CODE]).toBe(guest);
    expect(h.cpu.vmx.vmptrld(h.vmcs)).toBe(VmxStatus.undefinedOpcode);
    // And virtualization comes back, with the guest where it stood
    h.cpu.cr4 |= 1n << 13n;
    const region = h.page();
    h.bank.u32[region >>> 2] = Number((h.cpu.rdmsr(0x480) ?? 0n) & 0x7fff_ffffn);
    h.expect(h.cpu.vmx.vmxon(hpa(BANK, region)), "VMXON");
    h.expect(h.cpu.vmx.vmptrld(h.vmcs), "VMPTRLD");
    h.expect(h.cpu.vmx.vmlaunch(), "VMLAUNCH");
    expect(h.cpu.vmx.vmread32(VmcsField.EXIT_REASON)).toBe(12);
  });
});

describe("VMCB clean bits", () => {
  const ALL = 0xfff;
  function once(): SvmHarness {
    const h = new SvmHarness({ mode: "long", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
    h.load([0xf4, 0xf4]);
    h.run();
    h.set32(Control.CLEAN, ALL);
    return h;
  }
  const told = (h: SvmHarness): string[] => h.log.filter((line) => line.includes("clean bit"));

  it("are silent while the fields are what the last exit left, and of those that are always read", () => {
    const h = once();
    for (let i = 0; i < 3; i++) {
      h.set64(Save.RIP, CODE);
      h.set64(Save.RSP, 0x7100);
      h.set64(Save.RAX, 7 + i);
      h.set32(Control.INTERRUPT_STATE, 0);
      h.set8(Control.TLB_CONTROL, 3);
      h.run();
    }
    expect(told(h)).toEqual([]);
  });

  it.each([
    [0, "I", Control.INTERCEPT_EXCEPTIONS],
    [0, "I", Control.PAUSE_FILTER_THRESHOLD],
    [0, "I", Control.TSC_OFFSET],
    [1, "IOPM", Control.MSRPM_BASE + 4],
    [2, "ASID", Control.ASID],
    [3, "TPR", Control.V_VECTOR],
    [4, "NP", Save.G_PAT],
    [5, "CRx", Save.CR0],
    [6, "DRx", Save.DR6],
    [7, "DT", Save.GDTR + 8],
    [8, "SEG", Save.DS + 8],
    [9, "CR2", Save.CR2],
    [10, "LBR", Save.BR_TO],
    [11, "AVIC", Control.AVIC_BAR],
  ] as const)("bit %i, %s, is told of when the word at %i has changed", (bit, name, field) => {
    const h = once();
    h.set32(field, h.get32(field) ^ 4);
    h.run();
    expect(told(h)).toHaveLength(1);
    expect(told(h)[0]).toContain(`clean bit ${name} `);
    expect(told(h)[0]).toContain(`the word at 0x${field.toString(16)} has changed`);
    const honest = once();
    honest.set32(field, honest.get32(field) ^ 4);
    honest.set32(Control.CLEAN, ALL & ~(1 << bit));
    honest.run();
    expect(told(honest)).toEqual([]);
  });

  it("may not be set for a VMCB that the CPU has not run, or not since it had power", () => {
    const h = new SvmHarness({ mode: "long", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
    h.load([0xf4]);
    h.set32(Control.CLEAN, 1 << 5);
    h.run();
    expect(told(h)).toHaveLength(1);
    expect(told(h)[0]).toContain("clean bit CRx (CR0, CR3, CR4, EFER) set, though this CPU has not run it");
  });
});
