/** Virtual-interrupt delivery and posted interrupts under VMX. */
import { describe, expect, it } from "vitest";
import { ExitControl, ExitReason, Pin, Primary, Secondary } from "../src/vmx/controls.ts";
import { ALL_APICV, ApicHarness, readMsr, writeApic, writeMsr } from "./apic-harness.ts";
import { CODE } from "./vmx-harness.ts";

const HLT = 0xf4;
const STI = 0xfb;
const CLI = 0xfa;
const NOP = 0x90;
const IRET = [0x48, 0xcf];
const CPUID = [0x0f, 0xa2];
const EOI = writeApic(0xb0, 0);
const HANDLER = 0x9000;
const LOW = 0x41;
const HIGH = 0x83;
const DONE = { reason: ExitReason.hlt };

function guest(code: readonly number[], vectors: readonly number[] = [], secondary = ALL_APICV): ApicHarness {
  const h = new ApicHarness(code, secondary);
  for (const vector of [LOW, HIGH]) {
    // inc dword [counter]; mov [last], vector; EOI; iretq
    const at = HANDLER + (vector << 4) * 4;
    h.gate(vector, at);
    const eoi = (secondary & Secondary.virtualizeX2apicMode) !== 0 ? writeMsr(0x80b, 0) : EOI;
    h.load([0xff, 0x04, 0x25, 0, 0x40, 0, 0, 0xc7, 0x04, 0x25, 4, 0x40, 0, 0, vector, 0, 0, 0, ...eoi, ...IRET], at);
  }
  for (const vector of vectors) h.request(vector);
  h.setStatus(Math.max(0, ...vectors));
  return h.interruptible();
}
const served = (h: ApicHarness): { count: number; last: number } => ({ count: h.guestU32(0x4000), last: h.guestU32(0x4004) });

describe("a pending virtual interrupt", () => {
  it("is delivered at entry, in service while its handler runs, and gone behind its EOI", () => {
    const h = new ApicHarness([NOP, HLT], ALL_APICV);
    h.gate(LOW, HANDLER);
    h.load([...CPUID, ...EOI, ...CPUID, ...IRET], HANDLER);
    h.request(LOW);
    h.setStatus(LOW);
    expect(h.interruptible().run()).toMatchObject({ reason: ExitReason.cpuid, rip: HANDLER });
    expect(h.status).toEqual({ requesting: 0, servicing: LOW });
    expect([h.has(0x100, LOW), h.has(0x200, LOW), h.register(0xa0)]).toEqual([true, false, 0x40]);
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: HANDLER + 2 + EOI.length });
    expect(h.status).toEqual({ requesting: 0, servicing: 0 });
    expect([h.has(0x100, LOW), h.register(0xa0)]).toEqual([false, 0]);
    h.skip();
    expect(h.run()).toMatchObject({ ...DONE, rip: CODE + 1 });
  });
  it("comes by priority, the higher one first", () => {
    const h = guest([NOP, HLT], [LOW, HIGH]);
    expect(h.run()).toMatchObject(DONE);
    expect(served(h)).toEqual({ count: 2, last: LOW });
  });
  it("waits for IF, and for the instruction behind STI", () => {
    const h = guest([NOP, STI, NOP, HLT], [LOW]);
    h.write("GUEST_RFLAGS", 2);
    h.load([...CPUID], HANDLER + (LOW << 4) * 4);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid });
    const rsp = h.read("GUEST_RSP");
    expect(h.guestU32(rsp)).toBe(CODE + 3);
  });
  it("waits for the processor priority to fall, by TPR or by EOI", () => {
    const h = guest([NOP, ...CPUID, ...writeApic(0x80, 0x3f), NOP, HLT], [LOW]);
    h.setRegister(0x80, 0x40);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 1 });
    expect([served(h).count, h.register(0xa0)]).toEqual([0, 0x40]);
    h.skip();
    expect(h.run()).toMatchObject(DONE);
    expect(served(h)).toEqual({ count: 1, last: LOW });
  });
  it("comes behind the write that lets it through, be that in the shadow of STI or long behind it", () => {
    const lower = writeApic(0x80, 0);
    for (const code of [
      [CLI, NOP, STI, ...lower],
      [CLI, NOP, STI, NOP, ...lower],
      [STI, NOP, CLI, ...lower, STI, NOP],
      [STI, NOP, CLI, ...lower, 0x9c, 0x81, 0x0c, 0x24, 0, 2, 0, 0, 0x9d],
    ]) {
      const h = guest([...code, ...CPUID, HLT], [LOW]);
      h.setRegister(0x80, 0x40);
      h.write("GUEST_RFLAGS", 2);
      h.load([...CPUID], HANDLER + (LOW << 4) * 4);
      expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: HANDLER + (LOW << 4) * 4 });
      expect(h.guestU32(h.read("GUEST_RSP"))).toBe(CODE + code.length);
    }
  });
  it("waits while the interrupt window is watched, which exits instead", () => {
    const h = guest([NOP, HLT], [LOW]);
    h.setControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.interruptWindow, rip: CODE });
    h.clearControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run()).toMatchObject(DONE);
    expect(served(h).count).toBe(1);
  });
  it("ends HLT", () => {
    const h = guest([STI, HLT, ...CPUID], [LOW]);
    h.write("GUEST_RFLAGS", 2);
    h.clearControl("PRIMARY_CONTROLS", Primary.hltExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 2 });
    expect(served(h).count).toBe(1);
    h.setStatus(LOW);
    h.request(LOW);
    h.write("GUEST_ACTIVITY", 1);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid });
    expect(served(h).count).toBe(2);
  });
  it("comes behind the event that the entry injects, and is what a monitor trap follows", () => {
    const h = guest([NOP, HLT], [LOW]);
    h.gate(0x30, 0x9800);
    h.load([STI, NOP, ...IRET], 0x9800);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0030);
    expect(h.run()).toMatchObject(DONE);
    expect(served(h)).toEqual({ count: 1, last: LOW });
    h.request(HIGH);
    h.setStatus(HIGH);
    h.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    h.at(CODE);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: HANDLER + (HIGH << 4) * 4 });
  });
  it("that a delivery cut short had taken is in service, and told of as vectoring", () => {
    const h = guest([NOP, HLT], [LOW]);
    h.write("GUEST_RSP", 0x3f_f000);
    h.map(0x3f_e000, 0, 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation });
    expect(h.read("VECTORING_INFO")).toBe((0x8000_0000 | LOW) >>> 0);
    expect(h.status).toEqual({ requesting: 0, servicing: LOW });
  });
});

describe("EOI virtualization", () => {
  it("exits behind the EOI of a vector that the bitmap names, and of no other", () => {
    const h = guest([NOP, HLT], [LOW, HIGH]);
    h.write("EOI_EXIT_BITMAP1", 1n << BigInt(LOW - 64));
    const exit = h.run();
    expect(exit).toMatchObject({ reason: ExitReason.virtualizedEoi, qualification: LOW });
    expect(exit.rip).toBe(HANDLER + (LOW << 4) * 4 + 18 + EOI.length);
    expect(h.has(0x100, LOW)).toBe(false);
    expect(h.run()).toMatchObject(DONE);
    expect(served(h).count).toBe(2);
  });
  it("goes back to the interrupt that was interrupted", () => {
    const h = guest([NOP, ...EOI, ...CPUID]);
    h.setRegister(0x120, 2 | (1 << 8));
    h.setStatus(0, 0x48);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    expect(h.status).toEqual({ requesting: 0, servicing: LOW });
    expect(h.register(0xa0)).toBe(0x40);
  });
});

describe("a self-IPI", () => {
  it("by the interrupt command needs no software, any other IPI does", () => {
    const h = guest([...writeApic(0x300, 0x4_4000 | LOW), NOP, ...writeApic(0x300, 0x4000 | LOW), HLT]);
    const exit = h.run();
    expect(exit).toMatchObject({ reason: ExitReason.apicWrite, qualification: 0x300 });
    expect(served(h)).toEqual({ count: 1, last: LOW });
    // Level-triggered, NMI, a vector below 16, all including self
    for (const icr of [0x4_8000 | LOW, 0x4_0400, 0x4_0008, 0x8_0000 | LOW]) {
      h.load([...writeApic(0x300, icr), HLT]);
      h.at(CODE);
      expect(h.run()).toMatchObject({ reason: ExitReason.apicWrite, qualification: 0x300, rip: CODE + 11 });
    }
    expect(served(h).count).toBe(1);
  });
  it("of x2APIC mode is a register of its own", () => {
    const h = guest(
      [...writeMsr(0x83f, LOW), ...writeMsr(0x83f, HIGH), ...readMsr(0x80a), HLT],
      [],
      Secondary.virtualizeX2apicMode | Secondary.apicRegisterVirtualization | Secondary.virtualInterruptDelivery,
    );
    h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
    h.write("MSR_BITMAP", h.address(h.page()));
    expect(h.run()).toMatchObject(DONE);
    expect(served(h)).toEqual({ count: 2, last: HIGH });
    h.load([...writeMsr(0x83f, 5), HLT]);
    h.at(CODE);
    expect(h.run()).toMatchObject({ reason: ExitReason.apicWrite, qualification: 0x3f0, rip: CODE + 14 });
  });
  it("in a loop that is translated arrives each time", () => {
    // mov ebx, 5000; L: self-IPI; dec ebx; jnz L; hlt
    const ipi = writeApic(0x300, 0x4_4000 | LOW);
    const back = 256 - (ipi.length + 4);
    const h = guest([0xbb, 0x88, 0x13, 0, 0, ...ipi, 0xff, 0xcb, 0x75, back, HLT]);
    expect(h.run()).toMatchObject(DONE);
    expect(served(h)).toEqual({ count: 5000, last: LOW });
  });
});

describe("posted interrupts", () => {
  const NOTIFICATION = 0xf2;
  const ON = 1;
  function posting(code: readonly number[]): { h: ApicHarness; descriptor: number; post(vector: number): void } {
    const h = guest(code);
    const descriptor = h.page() + 0x40;
    h.setControl("PIN_CONTROLS", Pin.processPostedInterrupts);
    h.setControl("EXIT_CONTROLS", ExitControl.acknowledgeInterrupt);
    h.write("POSTED_INTERRUPT_VECTOR", NOTIFICATION);
    h.write("POSTED_INTERRUPT_DESCRIPTOR", h.address(descriptor));
    const post = (vector: number): void => {
      const word = (descriptor >>> 2) + (vector >>> 5);
      h.bank.u32[word] = (h.bank.u32[word] as number) | (1 << (vector & 31));
      h.bank.u32[(descriptor >>> 2) + 8] = ON;
    };
    return { h, descriptor, post };
  }
  it("go from the descriptor to the guest when the notification arrives, without an exit", () => {
    const { h, descriptor, post } = posting([NOP, HLT]);
    post(LOW);
    post(HIGH);
    h.cpu.sendIpi(0, NOTIFICATION);
    expect(h.run()).toMatchObject(DONE);
    expect(served(h)).toEqual({ count: 2, last: LOW });
    expect(h.cpu.interruptPending()).toBe(false);
    for (let word = 0; word < 9; word++) expect(h.bank.u32[(descriptor >>> 2) + word]).toBe(0);
  });
  it("end HLT, and are taken whether or not the guest takes interrupts", () => {
    const { h, post } = posting([CLI, NOP, ...CPUID, STI, HLT, ...CPUID]);
    h.clearControl("PRIMARY_CONTROLS", Primary.hltExiting);
    post(LOW);
    h.cpu.sendIpi(0, NOTIFICATION);
    h.write("GUEST_RFLAGS", 2);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 2 });
    expect(h.status.requesting).toBe(LOW);
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 6 });
    expect(served(h).count).toBe(1);
  });
  it("are left where another vector arrives, which exits, the higher one first", () => {
    const { h, descriptor, post } = posting([NOP, HLT]);
    post(LOW);
    h.cpu.sendIpi(0, 0x30);
    h.cpu.sendIpi(0);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_00fd);
    expect(h.bank.u32[(descriptor >>> 2) + 8]).toBe(ON);
    h.cpu.acknowledgeInterrupt();
    // In root mode a notification is an interrupt like another
    expect(h.cpu.interruptPending()).toBe(false);
    h.cpu.sendIpi(0, NOTIFICATION);
    h.cpu.sendIpi(0, 0x30);
    expect(h.run()).toMatchObject({ reason: ExitReason.externalInterrupt });
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_0030);
    expect(h.status.requesting).toBe(LOW);
  });
  it("must be told of with a vector", () => {
    const { h } = posting([HLT]);
    expect(() => h.cpu.sendIpi(0, 5)).toThrow("IPI with vector 5");
  });
});
