import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { EntryControl, ExitControl, ExitReason, Pin, Primary } from "../src/vmx/controls.ts";
import { VmcsField as F } from "../src/vmx/fields.ts";
import { type FakeEngine, fakeEngines, type Script } from "./fake-engine.ts";
import { BANK, VmxHarness } from "./vmx-harness.ts";

const cpuid: Script = (engine) => {
  engine.guest.cpuid();
  return undefined;
};

function harness(script: Script = cpuid, engines: FakeEngine[] = []): VmxHarness {
  return new VmxHarness({ mode: "long", engine: fakeEngines(script, engines) });
}

describe("VMX operation", () => {
  it("raises #UD outside VMX operation and without CR4.VMXE", () => {
    const { cpu, vmcs } = harness();
    expect(cpu.vmx.vmxoff()).toBe(VmxStatus.succeed);
    expect(cpu.vmx.vmptrld(vmcs)).toBe(VmxStatus.undefinedOpcode);
    expect(cpu.vmx.vmlaunch()).toBe(VmxStatus.undefinedOpcode);
    cpu.cr4 &= ~(1n << 13n);
    expect(cpu.vmx.vmxon(vmcs)).toBe(VmxStatus.undefinedOpcode);
  });

  it("fails VMXON in VMX operation with error 15 and keeps CR4.VMXE set", () => {
    const h = harness();
    expect(h.cpu.vmx.vmxon(h.vmcs)).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(15);
    h.cpu.cr4 = 0n;
    expect(h.cpu.cr4 & (1n << 13n)).not.toBe(0n);
  });

  it("numbers the failures of VMCLEAR and VMPTRLD", () => {
    const h = harness();
    const { vmx } = h.cpu;
    const other = hpa(BANK, h.page());
    expect(vmx.vmclear((h.vmcs + 8) as typeof h.vmcs)).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(2);
    vmx.vmptrld((h.vmcs + 8) as typeof h.vmcs);
    expect(h.read("INSTRUCTION_ERROR")).toBe(9);
    vmx.vmptrld(other);
    expect(h.read("INSTRUCTION_ERROR")).toBe(11);
    vmx.vmptrld(hpa(BANK, h.bank.firstFreeOffset));
    expect(h.read("INSTRUCTION_ERROR")).toBe(10);
    expect(vmx.vmptrst()).toBe(h.vmcs);
    expect(vmx.vmclear(h.vmcs)).toBe(VmxStatus.succeed);
    expect(vmx.vmptrst()).toBeUndefined();
    vmx.vmread(F.GUEST_RIP);
    expect(vmx.status).toBe(VmxStatus.failInvalid);
  });

  it("reports a VMCS that is active on another CPU", () => {
    const h = harness();
    h.bank.u32[((h.vmcs % 0x1_0000_0000) >>> 2) + 4] = 2;
    h.cpu.vmx.vmptrld(h.vmcs);
    expect(h.log.join()).toContain("active on CPU 1");
  });
});

describe("VMREAD and VMWRITE", () => {
  it("keeps fields to their width, with halves of 64-bit ones", () => {
    const { cpu } = harness();
    cpu.vmx.vmwrite(F.VPID, 0x12_3456);
    expect(cpu.vmx.vmread(F.VPID)).toBe(0x3456n);
    cpu.vmx.vmwrite(F.EXCEPTION_BITMAP, 0x1_2345_6789);
    expect(cpu.vmx.vmread(F.EXCEPTION_BITMAP)).toBe(0x2345_6789n);
    cpu.vmx.vmwrite(F.TSC_OFFSET, -5n);
    expect(cpu.vmx.vmread(F.TSC_OFFSET)).toBe(0xffff_ffff_ffff_fffbn);
    cpu.vmx.vmwrite(F.TSC_OFFSET, -5);
    expect(cpu.vmx.vmread(F.TSC_OFFSET)).toBe(0xffff_ffff_ffff_fffbn);
    cpu.vmx.vmwrite(F.TSC_OFFSET + 1, 7);
    expect(cpu.vmx.vmread(F.TSC_OFFSET)).toBe(0x7_ffff_fffbn);
    expect(cpu.vmx.vmread32(F.TSC_OFFSET + 1)).toBe(7);
    expect(cpu.vmx.vmreadNumber(F.TSC_OFFSET)).toBe(0x7_ffff_fffb);
  });

  it("fails with 12 for unknown and 13 for read-only fields", () => {
    const h = harness();
    expect(h.cpu.vmx.vmwrite(0x7000, 1)).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(12);
    expect(h.cpu.vmx.vmwrite(F.EXIT_REASON, 1)).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(13);
    h.cpu.vmx.vmread(F.GUEST_RIP + 1);
    expect(h.cpu.vmx.status).toBe(VmxStatus.failValid);
  });
});

describe("VM entry", () => {
  it("wants VMLAUNCH first and VMRESUME after", () => {
    const h = harness();
    expect(h.cpu.vmx.vmresume()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(5);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    expect(h.cpu.vmx.vmlaunch()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(4);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, instructionLength: 2 });
  });

  const invalidControls: [string, (h: VmxHarness) => void][] = [
    ["a cleared default1 control", (h) => h.clearControl("PRIMARY_CONTROLS", 0x2)],
    ["an unknown control", (h) => h.setControl("SECONDARY_CONTROLS", 1 << 31)],
    ["VPID 0", (h) => h.write("VPID", 0)],
    ["an EPT pointer with reserved bits", (h) => h.write("EPT_POINTER", 0x1000n)],
    ["virtual NMIs without NMI exiting", (h) => h.setControl("PIN_CONTROLS", Pin.virtualNmis)],
    ["NMI-window exiting without virtual NMIs", (h) => h.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting)],
    [
      "a misaligned MSR bitmap",
      (h) => {
        h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
        h.write("MSR_BITMAP", 8);
      },
    ],
    ["five CR3 targets", (h) => h.write("CR3_TARGET_COUNT", 5)],
    ["saving a preemption timer that is off", (h) => h.setControl("EXIT_CONTROLS", ExitControl.savePreemptionTimer)],
    ["an injected type 1", (h) => h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0120)],
    ["a page fault injected without error code", (h) => h.write("ENTRY_INTERRUPTION_INFO", 0x8000_030e)],
    ["INT n injected with length 0", (h) => h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0430)],
  ];
  /** A rule holds for a first entry as for one that has an exit behind it, whose entry looks at less. */
  const first = (): { h: VmxHarness; enter: () => VmxStatus } => {
    const h = harness();
    return { h, enter: () => h.cpu.vmx.vmlaunch() };
  };
  const later = (): { h: VmxHarness; enter: () => VmxStatus } => {
    const h = harness();
    for (let i = 0; i < 2; i++) expect(h.run().reason).toBe(ExitReason.cpuid);
    return { h, enter: () => h.cpu.vmx.vmresume() };
  };

  it.each(invalidControls)("fails with 7 for %s", (_name, breakRule) => {
    for (const entry of [first, later]) {
      const { h, enter } = entry();
      breakRule(h);
      expect(enter()).toBe(VmxStatus.failValid);
      expect(h.read("INSTRUCTION_ERROR")).toBe(7);
    }
  });

  it.each([
    ["CR4 without VMXE", "HOST_CR4", 0x20],
    ["CR0 without PG", "HOST_CR0", 0x31],
    ["a null TR", "HOST_TR_SELECTOR", 0],
    ["a selector with RPL", "HOST_CS_SELECTOR", 0x13],
    ["a base that is not canonical", "HOST_GDTR_BASE", 2 ** 56],
    ["EFER without LMA", "HOST_EFER", 0x901],
  ] as const)("fails with 8 for a host with %s", (_name, field, value) => {
    for (const entry of [first, later]) {
      const { h, enter } = entry();
      const valid = h.read(field);
      h.write(field, value);
      expect(enter()).toBe(VmxStatus.failValid);
      expect(h.read("INSTRUCTION_ERROR")).toBe(8);
      h.write(field, valid);
      expect(enter()).toBe(VmxStatus.succeed);
      expect(h.read("EXIT_REASON")).toBe(ExitReason.cpuid);
    }
  });

  it.each([
    ["CR0.PG without PE", "GUEST_CR0", 0x8000_0020, 0],
    ["RFLAGS bit 1 clear", "GUEST_RFLAGS", 0, 0],
    ["RIP not canonical", "GUEST_RIP", 2 ** 56, 0],
    ["CS not present", "GUEST_CS_ACCESS", 0xa01b, 0],
    ["TR with a data type", "GUEST_TR_ACCESS", 0x93, 0],
    ["a VMCS link pointer", "VMCS_LINK_POINTER", 0x1000, 4],
    ["EFER.LMA clear in IA-32e mode", "GUEST_EFER", 0x901, 0],
    ["both STI and MOV SS blocking", "GUEST_INTERRUPTIBILITY", 3, 0],
    ["activity state 3", "GUEST_ACTIVITY", 3, 0],
    ["an interrupt injected with IF clear", "ENTRY_INTERRUPTION_INFO", 0x8000_0020, 0],
  ] as const)("exits with reason 33 for a guest with %s", (_name, field, value, qualification) => {
    const h = harness();
    h.write(field, value);
    expect(h.run()).toMatchObject({ reason: 0x8000_0021, qualification });
    expect(h.cpu.vmx.vmresume()).toBe(VmxStatus.failValid); // still not launched
    const { h: entered } = later();
    const valid = entered.cpu.vmx.vmread(F[field]);
    entered.write(field, value);
    expect(entered.run()).toMatchObject({ reason: 0x8000_0021, qualification });
    entered.write(field, valid);
    expect(entered.run().reason).toBe(ExitReason.cpuid);
  });

  it("names the MSR-load entry that cannot be loaded", () => {
    const h = harness();
    const list = h.page();
    h.bank.u32[list >>> 2] = 0xc000_0082;
    h.bank.u32[(list >>> 2) + 2] = 0x1234;
    h.bank.u32[(list >>> 2) + 4] = 0xc000_0100;
    h.write("ENTRY_MSR_LOAD_ADDRESS", hpa(BANK, list));
    h.write("ENTRY_MSR_LOAD_COUNT", 2);
    expect(h.run()).toMatchObject({ reason: 0x8000_0022, qualification: 2 });
    h.write("ENTRY_MSR_LOAD_COUNT", 1);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    expect(h.cpu.rdmsr(0xc000_0082)).toBe(0x1234n);
  });

  it("checks again what was written after a good entry", () => {
    const h = harness();
    h.run();
    h.write("GUEST_CS_ACCESS", 0xa01b);
    expect(h.run().reason).toBe(0x8000_0021);
    h.write("GUEST_CS_ACCESS", 0xa09b);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    h.clearControl("ENTRY_CONTROLS", EntryControl.ia32eModeGuest);
    expect(h.run().reason).toBe(0x8000_0021);
  });
});

describe("time", () => {
  it("ends the slice on the instruction whose retirement reaches the deadline", () => {
    const slices: number[] = [];
    const h = harness((_engine, instructions) => {
      slices.push(instructions);
      return undefined;
    });
    h.cpu.setTimerDeadline(20 * 1000 - 5);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(slices).toEqual([1000]);
    expect(h.cpu.rdtsc()).toBe(20_000);
    expect(h.cpu.interruptPending()).toBe(true);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(slices).toEqual([1000]);
  });

  it("exits when the preemption timer reaches zero and saves what is left", () => {
    const h = harness();
    h.setControl("PIN_CONTROLS", Pin.preemptionTimer);
    h.write("GUEST_PREEMPTION_TIMER", 0);
    expect(h.run().reason).toBe(ExitReason.preemptionTimer);
    h.setControl("EXIT_CONTROLS", ExitControl.savePreemptionTimer);
    h.write("GUEST_PREEMPTION_TIMER", 100);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    expect(h.read("GUEST_PREEMPTION_TIMER")).toBe(100);
  });

  it("skips idle time under icount only as far as the deadline", () => {
    const h = harness();
    h.cpu.idle();
    expect(h.cpu.rdtsc()).toBe(0);
    h.cpu.setTimerDeadline(12_345);
    h.cpu.idle();
    expect(h.cpu.rdtsc()).toBe(12_345);
  });

  it("exits for an IPI until it is acknowledged", () => {
    const h = harness();
    h.cpu.sendIpi(0);
    h.setControl("EXIT_CONTROLS", ExitControl.acknowledgeInterrupt);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_00fd);
    h.cpu.acknowledgeInterrupt();
    expect(h.run().reason).toBe(ExitReason.cpuid);
  });
});

describe("banks", () => {
  it("keeps registers when the CPU turns to another bank and when a bank goes away", () => {
    const engines: FakeEngine[] = [];
    const h = harness(cpuid, engines);
    h.cpu.setGpr(3, 77n);
    h.run();
    expect(engines).toHaveLength(1);
    h.cpu.setGpr(5, 88n);
    h.cpu.vmx.vmclear(h.vmcs);
    h.cpu.memory.releaseBank(BANK);
    expect([h.cpu.gpr(3), h.cpu.gpr(5)]).toEqual([77n, 88n]);
    expect(() => h.cpu.memory.bank(BANK)).toThrow("no bank 3");
  });
});

describe("MSRs of root mode", () => {
  it("refuses what raises #GP and keeps the rest", () => {
    const { cpu } = harness();
    expect(cpu.wrmsr(0xc000_0081, 0x1234_5678_9abc_def0n)).toBe(true);
    expect(cpu.rdmsr(0xc000_0081)).toBe(0x1234_5678_9abc_def0n);
    expect(cpu.wrmsr(0xc000_0082, 1n << 56n)).toBe(false);
    expect(cpu.wrmsr(0xc000_0103, 1n << 32n)).toBe(false);
    expect(cpu.wrmsr(0x277, 2n)).toBe(false);
    expect(cpu.wrmsr(0xc000_0080, 0n)).toBe(false);
    expect(cpu.wrmsr(0x480, 0n)).toBe(false);
    expect(cpu.rdmsr(0x123_4567)).toBeUndefined();
    expect(cpu.rdmsr(0x10a)).not.toBeUndefined();
    expect(cpu.rdmsr(0x3a)).toBe(5n);
  });

  it("keeps x87 and SSE state through FXRSTOR and FXSAVE", () => {
    const { cpu } = harness();
    const image = new Uint8Array(512);
    const view = new DataView(image.buffer);
    view.setUint16(0, 0x27f, true);
    view.setUint16(2, 5 << 11, true);
    view.setUint8(4, 0b1110_0000);
    view.setUint32(24, 0x1fa0, true);
    for (let i = 0; i < 3; i++) {
      view.setBigUint64(32 + i * 16, 0x8000_0000_0000_0000n + BigInt(i), true);
      view.setUint16(40 + i * 16, 0x3fff, true);
    }
    for (let i = 160; i < 416; i++) image[i] = i & 0xff;
    cpu.fxrstor(image);
    const saved = new Uint8Array(512);
    cpu.fxsave(saved);
    view.setUint32(28, 0xffff, true);
    expect(saved).toEqual(image);
  });
});
