/** Accesses to the APIC-access page and to x2APIC registers under VMX: which exit, which are virtualized, and what becomes of them. */
import { describe, expect, it } from "vitest";
import { VmxStatus } from "../src/logical-cpu.ts";
import { ExitReason, Pin, Primary, Secondary, VmxError } from "../src/vmx/controls.ts";
import type { VmcsFieldName } from "../src/vmx/fields.ts";
import { ALL_APICV, APIC, ApicHarness, readApic, readMsr, writeApic, writeMsr } from "./apic-harness.ts";
import { CODE } from "./vmx-harness.ts";

const HLT = 0xf4;
const {
  virtualizeApicAccesses: ACCESSES,
  virtualInterruptDelivery: DELIVERY,
  apicRegisterVirtualization: REGISTERS,
} = Secondary;
const hex = (offsets: readonly number[]): string => offsets.map((offset) => offset.toString(16)).join(" ");

describe("an access that is not virtualized", () => {
  it("exits with its offset and type, and has done nothing", () => {
    const h = new ApicHarness([...readApic(0x30), HLT], ACCESSES);
    h.bank.u32[(h.accessPage + 0xb0) >>> 2] = 0x1234;
    expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, qualification: 0x30, rip: CODE, instructionLength: 7 });
    h.load(writeApic(0xb0, 7));
    expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, qualification: 0x10b0, rip: CODE });
    expect(h.bank.u32[(h.accessPage + 0xb0) >>> 2]).toBe(0x1234);
    expect(h.register(0xb0)).toBe(0);
    h.at(APIC + 0x123);
    expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, qualification: 0x2123 });
  });
  it("tells event delivery and page walks from instructions", () => {
    const h = new ApicHarness([0x0f, 0x0b], ACCESSES);
    h.gate(6, 0x9000);
    h.write("GUEST_RSP", APIC + 0x800);
    const exit = h.run();
    expect(exit.reason).toBe(ExitReason.apicAccess);
    expect(exit.qualification >>> 12).toBe(3);
    expect(h.read("VECTORING_INFO")).toBe(0x8000_0306);
    h.write("GUEST_CR3", APIC);
    expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, qualification: 0xf000 });
  });
  it("is any where the TPR shadow is off, and none where accesses are not virtualized", () => {
    const h = new ApicHarness([...readApic(0x80), HLT], ACCESSES, 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, qualification: 0x80 });
    const plain = new ApicHarness([...readApic(0x80), HLT], 0);
    plain.bank.u32[(plain.accessPage + 0x80) >>> 2] = 0x77;
    expect(plain.run().reason).toBe(ExitReason.hlt);
    expect(plain.cpu.gpr32(0)).toBe(0x77);
  });
  it("leaves nothing behind of an update that exits between its read and its write", () => {
    // add [rbx], eax: of the end of an interrupt the write is virtualized and the read is not
    const h = new ApicHarness([0x01, 0x03, HLT], ACCESSES | DELIVERY);
    h.cpu.setGpr(0, 7n);
    h.cpu.setGpr(3, BigInt(APIC + 0xb0));
    expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, qualification: 0xb0, rip: CODE });
    // The next update, of a page with code, is one of memory
    h.cpu.setGpr(3, BigInt(CODE + 0x800));
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 2 });
    expect(h.bank.u32[(h.guestMemory + CODE + 0x800) >>> 2]).toBe(7);
  });
  it("is one that is longer than a register, or not within its four bytes", () => {
    // mov rax, [rbx]; mov eax, [rbx]; mov [rbx], rax; movups xmm0, [rbx]
    const cases: readonly (readonly [readonly number[], number])[] = [
      [[0x48, 0x8b, 0x03], 0x80],
      [[0x8b, 0x03], 0x82],
      [[0x8b, 0x03], 0x84],
      [[0x48, 0x89, 0x03], 0x80],
      [[0x89, 0x03], 0xffe],
      [[0x0f, 0x10, 0x03], 0x80],
    ];
    for (const [code, offset] of cases) {
      const h = new ApicHarness([...code, HLT], ALL_APICV);
      h.write("GUEST_CR4", 0x2220);
      h.cpu.setGpr(3, BigInt(APIC + offset));
      expect(h.run()).toMatchObject({ reason: ExitReason.apicAccess, rip: CODE });
    }
  });
});

describe("virtualized registers", () => {
  /** Offsets whose access does not exit for software to make it. */
  function virtualized(code: readonly number[], secondary: number): number[] {
    const h = new ApicHarness([...code, HLT], ACCESSES | secondary);
    h.cpu.setGpr(0, 0n);
    const found: number[] = [];
    for (let offset = 0; offset < 0x1000; offset += 16) {
      h.at(CODE).cpu.setGpr(3, BigInt(APIC + offset));
      if (h.run().reason !== ExitReason.apicAccess) found.push(offset);
    }
    return found;
  }
  const blocks = Array.from({ length: 24 }, (_, i) => 0x100 + i * 16);
  const written = [
    0x20,
    0x80,
    0xb0,
    0xd0,
    0xe0,
    0xf0,
    0x280,
    0x300,
    0x310,
    ...[2, 3, 4, 5, 6, 7, 8].map((i) => 0x300 + i * 16),
    0x3e0,
  ];

  it("are, for reads, the task priority, or all but those that count", () => {
    expect(hex(virtualized([0x8b, 0x03], 0))).toBe("80");
    expect(hex(virtualized([0x8b, 0x03], DELIVERY))).toBe("80");
    const all = [...written, 0x30, ...blocks].sort((a, b) => a - b);
    expect(hex(virtualized([0x8b, 0x03], REGISTERS))).toBe(hex(all));
  });
  it("are, for writes, the task priority, what delivery needs, or all that can be written", () => {
    expect(hex(virtualized([0x89, 0x03], 0))).toBe("80");
    expect(hex(virtualized([0x89, 0x03], DELIVERY))).toBe("80 b0 300");
    expect(hex(virtualized([0x89, 0x03], REGISTERS))).toBe(hex(written));
  });

  it("read from the virtual-APIC page, bytes and words too", () => {
    // movzx eax, byte [rbx]; movzx ecx, word [rbx - 1]; hlt
    const h = new ApicHarness([0x0f, 0xb6, 0x03, 0x0f, 0xb7, 0x4b, 0xff, HLT], ALL_APICV);
    h.setRegister(0x320, 0x4433_2211);
    h.cpu.setGpr(3, BigInt(APIC + 0x322));
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect([h.cpu.gpr32(0), h.cpu.gpr32(1)]).toEqual([0x33, 0x3322]);
  });
  it("that software has to complete exit behind the write, with their offset", () => {
    const h = new ApicHarness([...writeApic(0x320, 0x1_00ec), HLT], ALL_APICV);
    expect(h.run()).toMatchObject({ reason: ExitReason.apicWrite, qualification: 0x320, rip: CODE + 11 });
    expect(h.register(0x320)).toBe(0x1_00ec);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });
  it("keep of the high half of the interrupt command what is its destination", () => {
    const h = new ApicHarness([...writeApic(0x310, 0xab12_3456), HLT], ALL_APICV);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.register(0x310) >>> 0).toBe(0xab00_0000);
  });
  it("are updated in place, once", () => {
    // or dword [APIC + 0x80], 0x30; or dword [APIC + 0xf0], 0x100; hlt
    const or = (offset: number): number[] => [0x81, 0x0c, 0x25, offset & 0xff, (offset >>> 8) & 0xff, 0x20, 0];
    const h = new ApicHarness([...or(0x80), 0x30, 0, 0, 0, ...or(0xf0), 0, 1, 0, 0, HLT], ALL_APICV);
    h.setRegister(0x80, 0x141);
    h.setRegister(0xf0, 0xff);
    expect(h.run()).toMatchObject({ reason: ExitReason.apicWrite, qualification: 0xf0, rip: CODE + 22 });
    expect([h.register(0x80), h.register(0xf0)]).toEqual([0x71, 0x1ff]);
  });
  it("of x2APIC mode are MSRs: all for reads, three for writes", () => {
    const h = new ApicHarness([...readMsr(0x832), ...readMsr(0x802), HLT], REGISTERS | Secondary.virtualizeX2apicMode);
    h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
    h.write("MSR_BITMAP", h.address(h.page()));
    h.setRegister(0x20, 5);
    h.setRegister(0x24, 6);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect([h.cpu.gpr32(0), h.cpu.gpr32(2)]).toEqual([5, 6]);
    h.gate(13, 0x9000);
    h.load([HLT], 0x9000);
    // The machine's processor has no x2APIC below: what is not virtualized is no MSR
    for (const [index, value, faults] of [
      [0x808, 0x20, false],
      [0x808, 0x100, true],
      [0x80b, 0, true],
      [0x838, 1, true],
    ] as const) {
      h.load([...writeMsr(index, value), HLT]);
      h.at(CODE);
      expect(h.run().rip).toBe(faults ? 0x9001 - 1 : CODE + 14);
    }
    expect(h.register(0x80)).toBe(0x20);
  });
});

describe("the TPR shadow", () => {
  const MOV_CR8_EAX = [0x44, 0x0f, 0x22, 0xc0];
  const MOV_EAX_CR8 = [0x44, 0x0f, 0x20, 0xc0];
  it("is what CR8 reads and writes", () => {
    const h = new ApicHarness([...MOV_EAX_CR8, 0x89, 0xc1, 0xb8, 9, 0, 0, 0, ...MOV_CR8_EAX, HLT], 0);
    h.setRegister(0x80, 0x5c);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect([h.cpu.gpr32(1), h.register(0x80)]).toEqual([5, 0x90]);
  });
  it("exits behind a write that goes below the threshold", () => {
    const h = new ApicHarness([0xb8, 4, 0, 0, 0, ...MOV_CR8_EAX, 0xff, 0xc8, ...MOV_CR8_EAX, HLT], 0);
    h.setRegister(0x80, 0x40);
    h.write("TPR_THRESHOLD", 4);
    expect(h.run()).toMatchObject({ reason: ExitReason.tprBelowThreshold, rip: CODE + 15 });
    expect(h.register(0x80)).toBe(0x30);
    // Below the threshold it cannot even be entered
    expect(h.cpu.vmx.vmresume()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidControls);
    h.write("TPR_THRESHOLD", 3);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });
  it("exits at once after an entry below the threshold where accesses are virtualized", () => {
    const h = new ApicHarness([HLT], ACCESSES);
    h.write("TPR_THRESHOLD", 1);
    expect(h.run()).toMatchObject({ reason: ExitReason.tprBelowThreshold, rip: CODE });
    h.setRegister(0x80, 0x10);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });
});

describe("VM entry checks of what virtualizes the local APIC", () => {
  const X2APIC = Secondary.virtualizeX2apicMode;
  type Change = (h: ApicHarness) => void;
  const write =
    (name: VmcsFieldName, value: bigint | number): Change =>
    (h) =>
      h.write(name, value);
  const posting: Change = (h) => {
    h.setControl("PIN_CONTROLS", Pin.processPostedInterrupts);
    h.setControl("EXIT_CONTROLS", 1 << 15);
    h.write("POSTED_INTERRUPT_DESCRIPTOR", h.address(h.page()));
  };
  type Case = readonly [what: string, secondary: number, primary: number, ...changes: Change[]];
  const named = (cases: readonly Case[]) =>
    cases.map(([what, secondary, primary, ...changes]) => ({ what, secondary, primary, changes }));
  const bad: readonly Case[] = [
    ["a virtual-APIC address that is not aligned", 0, Primary.useTprShadow, write("VIRTUAL_APIC_ADDRESS", 8n)],
    ["one beyond physical addresses", 0, Primary.useTprShadow, write("VIRTUAL_APIC_ADDRESS", 1n << 60n)],
    ["a TPR threshold above 15", ACCESSES, Primary.useTprShadow, write("TPR_THRESHOLD", 16)],
    ["x2APIC mode without the shadow", X2APIC, 0],
    ["register virtualization without the shadow", REGISTERS, 0],
    ["delivery without the shadow", DELIVERY, 0],
    ["an APIC-access address that is not aligned", ACCESSES, Primary.useTprShadow, write("APIC_ACCESS_ADDRESS", 0x800n)],
    ["accesses and x2APIC mode", ACCESSES | X2APIC, Primary.useTprShadow],
    ["posting without delivery", ACCESSES, Primary.useTprShadow, posting],
    [
      "posting without acknowledgement on exit",
      ALL_APICV,
      Primary.useTprShadow,
      posting,
      (h) => h.clearControl("EXIT_CONTROLS", 1 << 15),
    ],
    ["a notification vector above 255", ALL_APICV, Primary.useTprShadow, posting, write("POSTED_INTERRUPT_VECTOR", 0x1f2)],
    ["a descriptor that is not aligned", ALL_APICV, Primary.useTprShadow, posting, write("POSTED_INTERRUPT_DESCRIPTOR", 0x20n)],
  ];
  it.each(named(bad))("refuse $what", ({ secondary, primary, changes }) => {
    const h = new ApicHarness([HLT], secondary, primary);
    for (const change of changes) change(h);
    expect(h.cpu.vmx.vmlaunch()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidControls);
  });
  const good: readonly Case[] = [
    ["all of it with posting", ALL_APICV, Primary.useTprShadow, posting, write("POSTED_INTERRUPT_VECTOR", 0xff)],
    ["x2APIC mode", X2APIC | REGISTERS | DELIVERY, Primary.useTprShadow],
    ["accesses without the shadow, whose page then does not matter", ACCESSES, 0, write("VIRTUAL_APIC_ADDRESS", 8n)],
    ["any threshold under delivery", ALL_APICV, Primary.useTprShadow, write("TPR_THRESHOLD", 0xffff)],
  ];
  it.each(named(good))("let $what pass", ({ secondary, primary, changes }) => {
    const h = new ApicHarness([HLT], secondary, primary);
    for (const change of changes) change(h);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });
});

describe("time under icount", () => {
  it("does not move with accesses that are virtualized, as if they had exited", () => {
    const h = new ApicHarness(
      [...readApic(0x20), ...writeApic(0x80, 0x10), 0x90, ...writeApic(0x320, 1), 0x90, HLT],
      ALL_APICV,
    );
    const before = h.cpu.rdtsc();
    expect(h.run().reason).toBe(ExitReason.apicWrite);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.cpu.retiredInstructions()).toBe(5);
    const plain = new ApicHarness([0x90, 0x90, HLT], 0);
    const start = plain.cpu.rdtsc();
    plain.run();
    expect(h.cpu.rdtsc() - before).toBe(plain.cpu.rdtsc() - start);
  });
});
