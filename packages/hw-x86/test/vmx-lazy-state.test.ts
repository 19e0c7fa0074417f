/** Guest state that an exit leaves in the CPU, and entries that look only at what was written: nobody may tell. */
import { describe, expect, it } from "vitest";
import { SEG_ACCESS, SEG_BASE, SEG_LIMIT, SEG_SELECTOR, segmentOffset, state } from "../src/engine/cpu-state.ts";
import { createIntelModel } from "../src/engine/system/cpuid.ts";
import { IntelCpu } from "../src/intel-cpu.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { createMachine } from "../src/machine.ts";
import { ExitReason, Primary } from "../src/vmx/controls.ts";
import { VmcsField as F, slot, type VmcsFieldName } from "../src/vmx/fields.ts";
import { type FakeEngine, fakeEngines, type Script } from "./fake-engine.ts";
import { BANK, VmxHarness } from "./vmx-harness.ts";

const [CS, SS, FS, LDTR, TR] = [1, 2, 4, 6, 7];

/** Each group of guest-state fields: where the CPU has it, and two values that are valid in 64-bit mode. */
const FIELDS: [VmcsFieldName, number, bigint, bigint][] = [
  ["GUEST_CR3", state.cr3, 0x2000n, 0x3000n],
  ["GUEST_CR4", state.cr4, 0x2030n, 0x2220n],
  ["GUEST_CR0", state.cr0, 0x8000_0033n, 0x8000_003bn],
  ["GUEST_EFER", state.efer, 0xd00n, 0x501n],
  ["GUEST_PAT", state.pat, 0x0606_0606_0606_0606n, 0x0106_0406_0007_0406n],
  ["GUEST_DR7", state.dr + 56, 0x401n, 0x455n],
  ["GUEST_SYSENTER_CS", state.sysenterCs, 0x10n, 0xffff_ffffn],
  ["GUEST_SYSENTER_EIP", state.sysenterEip, 0xffff_8000_1234_5678n, 0x1000n],
  ["GUEST_GDTR_BASE", state.gdtrBase, 0xffff_ffff_8100_0000n, 0x7000n],
  ["GUEST_GDTR_LIMIT", state.gdtrLimit, 0x7fn, 0xfffn],
  ["GUEST_IDTR_BASE", state.idtrBase, 0x9000n, 0xffff_ff00_0000_0000n],
  ["GUEST_IDTR_LIMIT", state.idtrLimit, 0x1ffn, 0xfffn],
  ["GUEST_FS_BASE", segmentOffset(FS) + SEG_BASE, 0x7fff_1234_5678n, 0xffff_8880_0000_0000n],
  ["GUEST_FS_SELECTOR", segmentOffset(FS) + SEG_SELECTOR, 0x23n, 0x2bn],
  ["GUEST_SS_LIMIT", segmentOffset(SS) + SEG_LIMIT, 0xf_ffff_ffn, 0xfffn],
  ["GUEST_CS_ACCESS", segmentOffset(CS) + SEG_ACCESS, 0xa09fn, 0xa099n],
  ["GUEST_LDTR_ACCESS", segmentOffset(LDTR) + SEG_ACCESS, 0x82n, 0x1_0000n],
  ["GUEST_TR_LIMIT", segmentOffset(TR) + SEG_LIMIT, 0x6fn, 0xffn],
  ["GUEST_RSP", state.gpr + 32, 0xffff_8000_0000_1000n, 0x7100n],
  ["GUEST_RIP", state.rip, 0xffff_ffff_8100_0000n, 0x8100n],
];
const IS_SELECTOR = /SELECTOR/;
const IS_32_BITS = /LIMIT|ACCESS|CS$/;

function inCpu(engine: FakeEngine, name: VmcsFieldName, offset: number): bigint {
  if (IS_SELECTOR.test(name)) return BigInt(engine.view.getUint16(offset, true));
  return IS_32_BITS.test(name) ? BigInt(engine.u32[offset >>> 2] as number) : engine.get64(offset);
}
function setInCpu(engine: FakeEngine, name: VmcsFieldName, offset: number, value: bigint): void {
  if (IS_SELECTOR.test(name)) engine.view.setUint16(offset, Number(value), true);
  else if (IS_32_BITS.test(name)) engine.u32[offset >>> 2] = Number(value);
  else engine.set64(offset, value);
}

/** A guest that exits by CPUID each time, after what `guest` does to the CPU. */
function harness(guest: (engine: FakeEngine) => void): VmxHarness {
  const script: Script = (engine) => {
    guest(engine);
    engine.guest.cpuid();
    return undefined;
  };
  const h = new VmxHarness({ mode: "long", engine: fakeEngines(script) });
  for (let i = 0; i < 2; i++) expect(h.run().reason).toBe(ExitReason.cpuid);
  return h;
}

describe("guest state between exits", () => {
  it.each(FIELDS)("%s is what the guest left, and what VMWRITE put there", (name, offset, one, other) => {
    let set: bigint | undefined;
    let seen = 0n;
    const h = harness((engine) => {
      seen = inCpu(engine, name, offset);
      if (set !== undefined) setInCpu(engine, name, offset, set);
    });
    const { vmx } = h.cpu;
    h.write(name, one);
    h.run();
    expect(seen).toBe(one);
    set = other;
    h.run();
    expect(vmx.vmread(F[name])).toBe(other);
    expect(vmx.vmread32(F[name])).toBe(Number(other & 0xffff_ffffn));
    set = undefined;
    h.run();
    expect(seen).toBe(other);
    // Written back to what an earlier exit had saved: that the region already holds that value must not hide the write
    h.write(name, one);
    h.run();
    expect(seen).toBe(one);
    expect(vmx.vmread(F[name])).toBe(one);
  });

  it.each(FIELDS)("%s reaches another CPU by VMCLEAR and VMPTRLD", (name, offset, one, other) => {
    let set = one;
    const h = harness((engine) => setInCpu(engine, name, offset, set));
    set = other;
    h.run();
    expect(h.cpu.vmx.vmclear(h.vmcs)).toBe(VmxStatus.succeed);
    const region = (h.vmcs % 0x1_0000_0000) >>> 2;
    expect(h.bank.u32[region + slot[name]]).toBe(Number(other & 0xffff_ffffn));
    const second = new IntelCpu(
      createMachine({ cpus: 2, clock: "icount" }),
      1,
      createIntelModel(),
      fakeEngines(() => "exit"),
      () => undefined,
    );
    second.memory.attachBank(BANK, h.bank.memory);
    second.cr4 |= 1n << 13n;
    const vmxon = h.page();
    h.bank.u32[vmxon >>> 2] = h.bank.u32[region] as number;
    expect(second.vmx.vmxon((h.vmcs - (h.vmcs % 0x1_0000_0000) + vmxon) as typeof h.vmcs)).toBe(VmxStatus.succeed);
    expect(second.vmx.vmptrld(h.vmcs)).toBe(VmxStatus.succeed);
    expect(second.vmx.vmread(F[name])).toBe(other);
  });

  it("is kept when another VMCS is current in between", () => {
    let set = 0x1_0000n;
    let seen = 0n;
    const h = harness((engine) => {
      seen = engine.get64(state.gdtrBase);
      engine.set64(state.gdtrBase, set);
    });
    const other = (h.vmcs - (h.vmcs % 0x1_0000_0000) + h.page()) as typeof h.vmcs;
    h.bank.u32[(other % 0x1_0000_0000) >>> 2] = h.bank.u32[(h.vmcs % 0x1_0000_0000) >>> 2] as number;
    expect(h.cpu.vmx.vmclear(other)).toBe(VmxStatus.succeed);
    set = 0x2_0000n;
    h.run();
    expect(h.cpu.vmx.vmptrld(other)).toBe(VmxStatus.succeed);
    h.write("GUEST_GDTR_BASE", 0x3_0000n);
    expect(h.cpu.vmx.vmptrld(h.vmcs)).toBe(VmxStatus.succeed);
    expect(h.cpu.vmx.vmread(F.GUEST_GDTR_BASE)).toBe(0x2_0000n);
    h.run();
    expect(seen).toBe(0x2_0000n);
    expect(h.cpu.vmx.vmptrld(other)).toBe(VmxStatus.succeed);
    expect(h.cpu.vmx.vmread(F.GUEST_GDTR_BASE)).toBe(0x3_0000n);
  });
});

describe("controls and host state between exits", () => {
  it("takes a control that was written, and takes it back", () => {
    let halts = false;
    const script: Script = (engine) => {
      if (!halts || !engine.guest.hlt()) engine.guest.cpuid();
      return undefined;
    };
    const h = new VmxHarness({ mode: "long", engine: fakeEngines(script) });
    for (let i = 0; i < 2; i++) h.run();
    halts = true;
    expect(h.run().reason).toBe(ExitReason.hlt);
    h.clearControl("PRIMARY_CONTROLS", Primary.hltExiting);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    h.setControl("PRIMARY_CONTROLS", Primary.hltExiting);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });

  it("opens and closes the interrupt window", () => {
    const h = harness((engine) => {
      engine.u32[state.systemFlags >>> 2] = 0x202;
    });
    h.setControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run().reason).toBe(ExitReason.interruptWindow);
    h.clearControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run().reason).toBe(ExitReason.cpuid);
  });

  it("loads host registers that changed on either side", () => {
    const h = harness(() => undefined);
    h.write("HOST_FS_BASE", 0x1234_0000n);
    h.run();
    expect(h.cpu.rdmsr(0xc000_0100)).toBe(0x1234_0000n);
    h.cpu.wrmsr(0xc000_0100, 0x5678_0000n);
    expect(h.cpu.rdmsr(0xc000_0100)).toBe(0x5678_0000n);
    h.run();
    expect(h.cpu.rdmsr(0xc000_0100)).toBe(0x1234_0000n);
    h.cpu.cr4 |= 1n << 8n;
    h.run();
    expect(h.cpu.cr4).toBe(BigInt(h.read("HOST_CR4")));
  });

  it("clears the fields of an exit that has more to tell than the next", () => {
    let faults = true;
    const script: Script = (engine) => {
      if (faults) engine.guest.exception(13, 3, 0x18, 0n);
      else engine.guest.cpuid();
      return undefined;
    };
    const h = new VmxHarness({ mode: "long", engine: fakeEngines(script) });
    h.write("EXCEPTION_BITMAP", 1 << 13);
    for (let i = 0; i < 2; i++) expect(h.run().reason).toBe(ExitReason.exceptionOrNmi);
    expect([h.read("EXIT_INTERRUPTION_INFO"), h.read("EXIT_ERROR_CODE")]).toEqual([0x8000_0b0d, 0x18]);
    faults = false;
    h.run();
    expect([h.read("EXIT_INTERRUPTION_INFO"), h.read("EXIT_ERROR_CODE")]).toEqual([0, 0]);
  });
});
