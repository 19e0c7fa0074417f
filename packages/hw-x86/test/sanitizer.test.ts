/** Findings of the hardware sanitizer: each test commits the very mistake, and its pair does not. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { Engine } from "../src/engine/engine.ts";
import { engineMode } from "./engine-mode.ts";
import { BANK, VmxHarness } from "./vmx-harness.ts";

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
