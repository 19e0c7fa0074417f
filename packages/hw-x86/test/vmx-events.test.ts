/** What ends a VMX guest's run, or interrupts it: timers, traps, faults, NMIs; both sides of every limit. */
import { describe, expect, it } from "vitest";
import { VmxStatus } from "../src/logical-cpu.ts";
import { ExitControl, ExitReason, Pin, Primary, Secondary, VmxError } from "../src/vmx/controls.ts";
import { DATA, guest, HANDLER, HLT, INC_RAX_LOOP, NOP, TICKS } from "./halting-guest.ts";
import { CODE, type VmxHarness } from "./vmx-harness.ts";

describe("the preemption timer", () => {
  function timed(code: readonly number[], value: number): VmxHarness {
    const h = guest(code);
    h.setControl("PIN_CONTROLS", Pin.preemptionTimer);
    h.setControl("EXIT_CONTROLS", ExitControl.savePreemptionTimer);
    h.write("GUEST_PREEMPTION_TIMER", value);
    return h;
  }

  it("counts down with bit X of the TSC, X from IA32_VMX_MISC, and saves what is left", () => {
    const rate = Number((timed([HLT], 0).cpu.rdmsr(0x485) ?? 0n) & 31n);
    const nops = new Array<number>(40).fill(NOP);
    const h = timed([...nops, HLT], 1000);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.read("GUEST_PREEMPTION_TIMER")).toBe(1000 - ((40 * TICKS) >> rate));
    // Without the exit control the field stays, and the next entry begins there anew
    h.clearControl("EXIT_CONTROLS", ExitControl.savePreemptionTimer);
    h.write("GUEST_PREEMPTION_TIMER", 500);
    h.write("GUEST_RIP", CODE);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.read("GUEST_PREEMPTION_TIMER")).toBe(500);
    const loop = timed(INC_RAX_LOOP, 77);
    expect(loop.run()).toMatchObject({ reason: ExitReason.preemptionTimer, qualification: 0 });
    expect(loop.cpu.rdtsc()).toBe(Math.ceil((77 << rate) / TICKS) * TICKS);
    expect(loop.read("GUEST_PREEMPTION_TIMER")).toBe(0);
  });

  it("of zero exits before any instruction, but behind the event that the entry injects", () => {
    const h = timed([NOP, HLT], 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.preemptionTimer, rip: CODE });
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0306);
    expect(h.run()).toMatchObject({ reason: ExitReason.preemptionTimer, rip: HANDLER });
    expect(h.cpu.retiredInstructions()).toBe(0);
  });

  it.each([
    ["HLT", 1],
    ["shutdown", 2],
  ] as const)("counts on in %s, which it ends", (_name, activity) => {
    const h = timed([NOP], 1000);
    h.write("GUEST_ACTIVITY", activity);
    expect(h.run()).toMatchObject({ reason: ExitReason.preemptionTimer, rip: CODE });
    expect([h.cpu.rdtsc(), h.read("GUEST_ACTIVITY"), h.cpu.retiredInstructions()]).toEqual([32_000, activity, 0]);
  });

  it("comes before NMI and interrupt windows and external interrupts, and behind debug traps and the monitor trap", () => {
    const windows = timed([NOP, HLT], 0);
    windows.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    windows.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting | Primary.interruptWindowExiting);
    windows.write("GUEST_RFLAGS", 0x202);
    windows.cpu.sendIpi(0);
    const order: number[] = [windows.run().reason];
    windows.clearControl("EXIT_CONTROLS", ExitControl.savePreemptionTimer);
    windows.clearControl("PIN_CONTROLS", Pin.preemptionTimer);
    order.push(windows.run().reason);
    windows.clearControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting);
    order.push(windows.run().reason);
    windows.clearControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    order.push(windows.run().reason);
    expect(order).toEqual([
      ExitReason.preemptionTimer,
      ExitReason.nmiWindow,
      ExitReason.interruptWindow,
      ExitReason.externalInterrupt,
    ]);
    // Both due behind the same instruction
    const stepped = timed([NOP, NOP, HLT], 0);
    stepped.write("GUEST_PREEMPTION_TIMER", 1);
    stepped.write("GUEST_RFLAGS", 0x102);
    stepped.write("EXCEPTION_BITMAP", 1 << 1);
    expect(stepped.run().reason).toBe(ExitReason.exceptionOrNmi);
    const trapped = timed([NOP, NOP, HLT], 0);
    trapped.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    trapped.write("GUEST_PREEMPTION_TIMER", 1);
    trapped.cpu.setTimerDeadline(1);
    expect(trapped.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: CODE + 1 });
  });
});

describe("the shutdown state", () => {
  it("blocks external interrupts and the interrupt window, and nothing here can end it alone", () => {
    const h = guest([NOP]);
    h.write("GUEST_ACTIVITY", 2);
    h.write("GUEST_RFLAGS", 0x202);
    h.setControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    h.cpu.sendIpi(0);
    h.cpu.setTimerDeadline(5);
    expect(() => h.run()).toThrow("nothing on this machine can end it");
  });
  it("is ended by the NMI window", () => {
    const h = guest([NOP]);
    h.write("GUEST_ACTIVITY", 2);
    h.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    h.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.nmiWindow, rip: CODE });
  });
});

describe("page faults by error code", () => {
  // A read (0), a write (2) and one of a page that is there (3) by the guest's tables
  const cases: readonly (readonly [string, number, number, number, boolean])[] = [
    ["bit set, all match", 1 << 14, 0, 0, true],
    ["bit set, matches a write", 1 << 14, 2, 2, true],
    ["bit set, no match", 1 << 14, 1, 1, false],
    ["bit clear, match", 0, 2, 2, false],
    ["bit clear, no match: exits", 0, 1, 1, true],
    ["bit clear, all match", 0, 0, 0, false],
  ];
  it.each(cases)("%s", (_name, bitmap, mask, match, exits) => {
    // mov [0x40000000], eax
    const h = guest([0x89, 0x04, 0x25, 0, 0, 0, 0x40]);
    h.write("EXCEPTION_BITMAP", bitmap);
    h.write("PAGE_FAULT_MASK", mask);
    h.write("PAGE_FAULT_MATCH", match);
    const exit = h.run();
    if (!exits) {
      expect(exit).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
      return;
    }
    expect(exit).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: 0x4000_0000, rip: CODE });
    expect([h.read("EXIT_INTERRUPTION_INFO"), h.read("EXIT_ERROR_CODE")]).toEqual([0x8000_0b0e, 2]);
  });
});

describe("virtual NMIs", () => {
  const BLOCKED = 8;
  const UNBLOCKING = 1 << 12;
  /** A guest in an NMI's handler, whose IRET is at CODE. */
  function handling(code: readonly number[] = [0x48, 0xcf]): VmxHarness {
    const h = guest(code);
    h.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    h.write("GUEST_INTERRUPTIBILITY", BLOCKED);
    for (const [i, word] of [CODE + 0x100, 0x10, 2, 0x7000, 0x18].entries())
      h.bank.view.setBigUint64(h.guestMemory + 0x6f00 + 8 * i, BigInt(word), true);
    h.load([HLT], CODE + 0x100);
    h.write("GUEST_RSP", 0x6f00);
    return h;
  }

  it("block the window from injection to IRET", () => {
    const h = guest([NOP, HLT]);
    h.load([NOP, 0x48, 0xcf], HANDLER);
    h.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    h.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0202);
    expect(h.run()).toMatchObject({ reason: ExitReason.nmiWindow, rip: CODE });
    expect(h.cpu.retiredInstructions()).toBe(2);
  });

  it("wait for the end of the shadows of STI and MOV SS", () => {
    // mov ss, ecx; nop; nop
    const h = guest([0x8e, 0xd1, NOP, NOP, HLT]);
    h.cpu.setGpr(1, 0x18n);
    h.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    h.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting);
    h.write("GUEST_INTERRUPTIBILITY", 2);
    expect(h.run()).toMatchObject({ reason: ExitReason.nmiWindow, rip: CODE + 2 });
  });

  it("are unblocked by an IRET that faults into the guest", () => {
    const h = handling();
    // A null selector for CS: #GP
    h.bank.view.setBigUint64(h.guestMemory + 0x6f08, 0n, true);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(0);
    const watched = handling();
    watched.bank.view.setBigUint64(watched.guestMemory + 0x6f08, 0n, true);
    watched.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting);
    expect(watched.run()).toMatchObject({ reason: ExitReason.nmiWindow, rip: HANDLER });
  });

  it("are told of as unblocked by an IRET that exits: a fault, an EPT violation, a full log", () => {
    const fault = handling();
    fault.bank.view.setBigUint64(fault.guestMemory + 0x6f08, 0n, true);
    fault.write("EXCEPTION_BITMAP", 1 << 13);
    expect(fault.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE });
    expect(fault.read("EXIT_INTERRUPTION_INFO")).toBe((0x8000_0b0d | UNBLOCKING) >>> 0);
    expect(fault.read("GUEST_INTERRUPTIBILITY")).toBe(0);
    const violation = handling();
    violation.map(0x6000, 0, 0);
    const exit = violation.run();
    expect(exit).toMatchObject({ reason: ExitReason.eptViolation, rip: CODE });
    expect(exit.qualification & UNBLOCKING).toBe(UNBLOCKING);
    // The next one is not IRET's
    const other = handling([0x48, 0xcf]);
    other.write("GUEST_INTERRUPTIBILITY", 0);
    other.map(0x6000, 0, 0);
    expect(other.run().qualification & UNBLOCKING).toBe(0);
    const after = handling();
    after.load([0x8a, 0x04, 0x25, 0, 0, 0x30, 0], CODE + 0x100);
    after.map(DATA, 0, 0);
    const later = after.run();
    expect(later).toMatchObject({ reason: ExitReason.eptViolation, rip: CODE + 0x100 });
    expect(later.qualification & UNBLOCKING).toBe(0);
  });
});

describe("the monitor trap flag", () => {
  it("comes behind each iteration of a string instruction, and behind an injected event before its handler", () => {
    // mov ecx, 3; rep stosb
    const h = guest([0xf3, 0xaa, HLT]);
    h.cpu.setGpr(1, 3n);
    h.cpu.setGpr(7, BigInt(DATA));
    h.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: CODE });
    expect(h.cpu.gpr(1)).toBe(2n);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0306);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: HANDLER });
  });
  it("that is injected exits at once, without the control", () => {
    const h = guest([NOP, HLT]);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0700);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: CODE });
    expect(h.cpu.retiredInstructions()).toBe(0);
    // Of "other event" there is no other vector
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0701);
    expect(h.cpu.vmx.vmresume()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidControls);
  });
});

describe("time", () => {
  it("is scaled by 2^-48 units before it is offset, and neither without TSC offsetting", () => {
    for (const [primary, secondary, expected] of [
      [0, Secondary.tscScaling, 4000n],
      [Primary.useTscOffsetting, 0, 3000n],
      [Primary.useTscOffsetting, Secondary.tscScaling, 5000n],
    ] as const) {
      const h = guest([0x0f, 0x31, HLT]);
      h.cpu.setTimerDeadline(4000);
      h.cpu.idle();
      h.cpu.setTimerDeadline(Number.POSITIVE_INFINITY);
      h.setControl("PRIMARY_CONTROLS", primary);
      h.setControl("SECONDARY_CONTROLS", secondary);
      h.write("TSC_OFFSET", BigInt.asUintN(64, -1000n));
      h.write("TSC_MULTIPLIER", 3n << 47n);
      expect(h.run().reason).toBe(ExitReason.hlt);
      expect(h.cpu.gpr(0)).toBe(expected);
    }
  });
});
