/** Findings of the hardware sanitizer: each test commits the very mistake, and its pair does not. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { Engine } from "../src/engine/engine.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { Control } from "../src/svm/vmcb.ts";
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
