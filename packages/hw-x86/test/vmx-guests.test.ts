/** Small guests under VMX, on the real engine: each asserts the exits of one mechanism. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { EntryControl, ExitControl, ExitReason, Pin, Primary, Secondary } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { GDT, GDT_LIMIT, HANDLER, IDT, IDT_LIMIT, writeGate } from "./guest-gates.ts";
import { BANK, CODE, type HarnessOptions, VmxHarness } from "./vmx-harness.ts";

const CPUID = [0x0f, 0xa2];
const HLT = [0xf4];
const NOP = [0x90];
const UD2 = [0x0f, 0x0b];
const STI = [0xfb];
const CLI = [0xfa];
const INC_RAX = [0x48, 0xff, 0xc0];
const INC_RAX_LOOP = [...INC_RAX, 0xeb, 0xfb];

function guest(mode: HarnessOptions["mode"], code: readonly number[], clock: HarnessOptions["clock"] = "icount"): VmxHarness {
  const h = new VmxHarness({
    mode,
    clock,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  return h;
}

function setGate(h: VmxHarness, vector: number, handler = HANDLER): void {
  writeGate(h, vector, handler);
  h.write("GUEST_IDTR_BASE", IDT);
  h.write("GUEST_IDTR_LIMIT", IDT_LIMIT);
  h.write("GUEST_GDTR_BASE", GDT);
  h.write("GUEST_GDTR_LIMIT", GDT_LIMIT);
}

describe.each(["real", "long"] as const)("a guest in %s mode", (mode) => {
  it("exits for CPUID and HLT and goes on after them", () => {
    const h = guest(mode, [...CPUID, ...NOP, ...HLT]);
    expect(h.run()).toEqual({ reason: ExitReason.cpuid, qualification: 0, instructionLength: 2, rip: CODE });
    h.skip();
    expect(h.run()).toEqual({ reason: ExitReason.hlt, qualification: 0, instructionLength: 1, rip: CODE + 3 });
    expect(h.cpu.retiredInstructions()).toBe(1);
  });

  it("keeps the shadow of STI and of MOV SS for an instruction that exits in it", () => {
    const movSs = mode === "long" ? [0x8e, 0xd1] : [0x8e, 0xd0];
    const h = guest(mode, [...STI, ...HLT, ...NOP, ...CPUID, ...movSs, ...CPUID, ...HLT]);
    if (mode === "long") h.cpu.setGpr(1, 0x18n);
    setGate(h, 13);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 1 });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(1);
    expect(h.cpu.retiredInstructions()).toBe(1);
    h.skip();
    h.write("GUEST_INTERRUPTIBILITY", 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 3 });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(0);
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 7 });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(2);
    expect(h.cpu.retiredInstructions()).toBe(3);
  });

  it("tells port, size, direction and form of I/O", () => {
    // out 0xf4, al; mov dx, 0x3f8; in eax, dx (in ax, dx in real mode)
    const h = guest(
      mode,
      [0xe6, 0xf4, 0x66, 0xba, 0xf8, 0x03, 0xed].filter((byte, i) => mode === "long" || i !== 2 || byte !== 0x66),
    );
    expect(h.run()).toMatchObject({ reason: ExitReason.io, qualification: (0xf4 << 16) | 0x40, instructionLength: 2 });
    h.skip();
    const size = mode === "long" ? 3 : 1;
    expect(h.run()).toMatchObject({ reason: ExitReason.io, qualification: (0x3f8 << 16) | 8 | size, instructionLength: 1 });
  });

  it("exits for an external interrupt at the exact instruction under icount", () => {
    // inc eax; jmp back
    const h = guest(mode, mode === "long" ? INC_RAX_LOOP : [0x66, 0xff, 0xc0, 0xeb, 0xfb]);
    h.cpu.setTimerDeadline(20 * 1001);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.retiredInstructions()).toBe(1001);
    expect(h.cpu.gpr(0)).toBe(501n);
    expect(h.read("GUEST_RIP")).toBe(CODE + 3);
    h.cpu.setTimerDeadline(20 * 1_000_000 + 1);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.retiredInstructions()).toBe(1_000_001);
  });
});

describe("EPT", () => {
  // mov eax, [0x300000]; mov [0x300000], eax
  const touch = [0x8b, 0x04, 0x25, 0, 0, 0x30, 0, 0x89, 0x04, 0x25, 0, 0, 0x30, 0];

  it("tells reads from writes and what the entry allowed, and goes on once it is mapped", () => {
    const h = guest("long", [...touch, ...HLT]);
    const entry = h.eptEntry(0x30_0000);
    const low = h.bank.u32[entry >>> 2] as number;
    h.setEntry(entry, 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x181, rip: CODE });
    expect([h.read("GUEST_PHYSICAL_ADDRESS"), h.read("GUEST_LINEAR_ADDRESS")]).toEqual([0x30_0000, 0x30_0000]);
    h.setEntry(entry, low & ~2);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x182 | (5 << 3), rip: CODE + 7 });
    h.setEntry(entry, low);
    expect(h.run().reason).toBe(ExitReason.hlt);
  });

  it("exits for a fetch from a page that is not executable", () => {
    const h = guest("long", HLT);
    const entry = h.eptEntry(CODE);
    h.setEntry(entry, (h.bank.u32[entry >>> 2] as number) & ~4);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x184 | (3 << 3), rip: CODE });
  });

  it("tells accesses to guest paging structures", () => {
    const h = guest("long", HLT);
    h.setEntry(h.eptEntry(0x2000), 0);
    const exit = h.run();
    expect(exit).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x81 });
    expect(h.read("GUEST_PHYSICAL_ADDRESS")).toBe(0x2000);
  });

  it("misconfigures for entries that are writable but not readable", () => {
    const h = guest("long", [...touch, ...HLT]);
    const entry = h.eptEntry(0x30_0000);
    h.setEntry(entry, ((h.bank.u32[entry >>> 2] as number) & ~7) | 2);
    expect(h.run().reason).toBe(ExitReason.eptMisconfiguration);
    expect(h.read("GUEST_PHYSICAL_ADDRESS")).toBe(0x30_0000);
  });

  it("sets accessed and dirty flags when the EPT pointer asks for them", () => {
    const h = guest("long", [...touch, ...HLT]);
    h.write("EPT_POINTER", (BigInt(BANK) << 32n) | BigInt(h.eptRoot) | 0x5en);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect((h.bank.u32[h.eptEntry(0x30_0000) >>> 2] as number) & 0x300).toBe(0x300);
    expect((h.bank.u32[h.eptEntry(CODE) >>> 2] as number) & 0x300).toBe(0x100);
    expect((h.bank.u32[h.eptEntry(0x10_0000) >>> 2] as number) & 0x300).toBe(0);
  });

  it("maps pages of 2 MiB", () => {
    // mov eax, [0x601234]
    const h = guest("long", [0x8b, 0x04, 0x25, 0x34, 0x12, 0x60, 0, ...HLT]);
    expect(h.guestMemory % 0x20_0000).toBe(0);
    h.map(0x60_0000, h.guestMemory, 0xb7, 1);
    h.bank.u32[(h.guestMemory + 0x1234) >>> 2] = 0xfeed;
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.cpu.gpr(0)).toBe(0xfeedn);
  });

  it("reads ones outside the bank, loses writes, and says so", () => {
    const h = guest("long", [...touch, ...HLT]);
    h.setEntry(h.eptEntry(0x30_0000), (0x100_0000 | 0x37) >>> 0, BANK + 1);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.cpu.gpr(0)).toBe(0xffff_ffffn);
    expect(h.log.join()).toContain("has no memory");
  });

  it("misconfigures when the EPT pointer names a bank that is not there", () => {
    const h = guest("long", HLT);
    h.write("EPT_POINTER", (BigInt(BANK + 5) << 32n) | BigInt(h.eptRoot) | 0x1en);
    expect(h.run().reason).toBe(ExitReason.eptMisconfiguration);
  });

  it("runs guests on physical memory without EPT", () => {
    const h = guest("long", HLT);
    h.clearControl("SECONDARY_CONTROLS", Secondary.enableEpt | Secondary.unrestrictedGuest);
    const base = BigInt(h.guestMemory) | (BigInt(BANK) << 32n);
    h.bank.view.setBigUint64(h.guestMemory + 0x1000, (base + 0x2000n) | 7n, true);
    h.bank.view.setBigUint64(h.guestMemory + 0x2000, (base + 0x3000n) | 7n, true);
    h.bank.view.setBigUint64(h.guestMemory + 0x3000, base | 0x87n, true);
    h.write("GUEST_CR3", base + 0x1000n);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE });
  });

  it("forgets old translations after INVEPT", () => {
    const h = guest("long", [...touch, ...CPUID, ...touch, ...HLT]);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    h.skip();
    h.setEntry(h.eptEntry(0x30_0000), 0);
    h.cpu.vmx.invept(1, (BigInt(BANK) << 32n) | BigInt(h.eptRoot) | 0x1en);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x181 });
  });
});

describe("events", () => {
  it("injects an external interrupt through the real-mode vector table", () => {
    const h = guest("real", [...STI, ...NOP, ...NOP, ...HLT]);
    h.load([0x00, 0x90, 0x00, 0x00], 0x20 * 4);
    h.load(HLT, HANDLER);
    h.write("GUEST_RFLAGS", 0x202);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0020);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
    expect(h.read("ENTRY_INTERRUPTION_INFO")).toBe(0x20);
    expect(h.read("GUEST_RFLAGS") & 0x200).toBe(0);
    expect(h.guestU32(0x6ffa)).toBe(CODE); // IP, CS 0
  });

  it("injects a page fault with its error code through a 64-bit gate", () => {
    const h = guest("long", HLT);
    setGate(h, 14);
    h.load(HLT, HANDLER);
    h.cpu.cr2 = 0xdead_b000n;
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0b0e);
    h.write("ENTRY_ERROR_CODE", 6);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
    expect(h.cpu.cr2).toBe(0xdead_b000n);
    const rsp = h.read("GUEST_RSP");
    expect(h.guestU32(rsp)).toBe(6);
    expect(h.guestU32(rsp + 8)).toBe(CODE);
  });

  it("records the event whose delivery an EPT violation cut short", () => {
    const h = guest("long", HLT);
    setGate(h, 0x30);
    h.write("GUEST_RFLAGS", 0x202);
    h.setEntry(h.eptEntry(IDT), 0);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0030);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, rip: CODE });
    expect(h.read("VECTORING_INFO")).toBe(0x8000_0030);
    expect(h.read("GUEST_RSP")).toBe(0x7000);
  });

  it("opens the interrupt window after the instruction behind STI", () => {
    const h = guest("long", [...NOP, ...STI, ...NOP, ...NOP, ...HLT]);
    h.setControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.interruptWindow, rip: CODE + 3 });
    h.clearControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 4 });
  });

  it("opens the interrupt window at once when interrupts are on already", () => {
    const h = guest("long", [...CLI, ...HLT]);
    h.write("GUEST_RFLAGS", 0x202);
    h.setControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.interruptWindow, rip: CODE });
  });

  it("opens the interrupt window with POPF, and inside a block", () => {
    // push 0x202; popfq; nop; hlt
    const h = guest("long", [0x68, 2, 2, 0, 0, 0x9d, ...NOP, ...HLT]);
    h.setControl("PRIMARY_CONTROLS", Primary.interruptWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.interruptWindow, rip: CODE + 6 });
  });

  it("holds an external interrupt in the shadow of STI", () => {
    const h = guest("long", [...STI, ...NOP, ...HLT]);
    h.cpu.setTimerDeadline(20);
    expect(h.run()).toMatchObject({ reason: ExitReason.externalInterrupt, rip: CODE + 2 });
  });

  it("takes an external interrupt that STI held when a fault ends the shadow, before the handler", () => {
    const h = guest("long", [...STI, ...UD2]);
    // A handler of such code alone, that faults again, would hold the interrupt for ever
    h.load([...STI, ...UD2], HANDLER);
    setGate(h, 6);
    h.cpu.setTimerDeadline(20);
    expect(h.run()).toMatchObject({ reason: ExitReason.externalInterrupt, rip: HANDLER });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(0);
  });

  it("blocks NMIs after one was injected until IRET", () => {
    const h = guest("long", HLT);
    setGate(h, 2);
    h.load([0x48, 0xcf, ...HLT], HANDLER); // iretq
    h.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0202);
    h.setControl("PRIMARY_CONTROLS", Primary.nmiWindowExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.nmiWindow, rip: CODE });
  });

  it("intercepts exceptions by bitmap, page faults by error code", () => {
    const h = guest("long", [0x0f, 0x0b, 0xa1, 0, 0, 0, 0x40, 0, 0, 0, 0]); // ud2; mov eax, [0x40000000]
    h.write("EXCEPTION_BITMAP", (1 << 6) | (1 << 14));
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE });
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_0306);
    h.write("GUEST_RIP", CODE + 2);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: 0x4000_0000, rip: CODE + 2 });
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_0b0e);
    expect(h.read("EXIT_ERROR_CODE")).toBe(0);
    expect(h.cpu.cr2).toBe(0n);
    h.write("PAGE_FAULT_MASK", 1);
    h.write("PAGE_FAULT_MATCH", 1);
    h.write("GUEST_IDTR_LIMIT", 0);
    expect(h.run().reason).toBe(ExitReason.tripleFault);
    expect(h.cpu.cr2).toBe(0x4000_0000n);
  });

  it("traps after one instruction with the monitor trap flag", () => {
    const h = guest("long", [...NOP, ...NOP, ...HLT]);
    h.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: CODE + 1 });
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: CODE + 2 });
    expect(h.run().reason).toBe(ExitReason.hlt);
  });

  it("traps after the delivery of a fault, before its handler", () => {
    const h = guest("long", [...UD2, ...HLT]);
    h.load([...NOP, ...HLT], HANDLER);
    setGate(h, 6);
    h.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: HANDLER });
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: HANDLER + 1 });
  });
});

describe("controls", () => {
  it("shows the host's bits of CR0 and CR4 as the shadow says, and exits when they change", () => {
    // mov rax, cr0; mov rbx, cr4; or eax, 2; mov cr0, rax; or eax, 0x10000; mov cr0, rax
    const h = guest("long", [
      0x0f,
      0x20,
      0xc0,
      0x0f,
      0x20,
      0xe3,
      0x83,
      0xc8,
      0x02,
      0x0f,
      0x22,
      0xc0,
      0x0d,
      0,
      0,
      1,
      0,
      0x0f,
      0x22,
      0xc0,
      ...HLT,
    ]);
    h.write("CR0_MASK", 0x1_0021);
    h.write("CR0_SHADOW", 1);
    h.write("CR4_SHADOW", 0);
    expect(h.run()).toMatchObject({
      reason: ExitReason.controlRegister,
      qualification: 0,
      instructionLength: 3,
      rip: CODE + 17,
    });
    expect(h.cpu.gpr(0)).toBe(0x8001_0013n);
    expect(h.cpu.gpr(3)).toBe(0x20n);
    expect(h.read("GUEST_CR0")).toBe(0x8000_0033);
  });

  it("exits for CR3 unless it is a target, and for CR8 and debug registers", () => {
    // mov rax, cr3; mov cr3, rax; mov cr8, rax; mov dr0, rax; mov rcx, dr3
    const h = guest("long", [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x44, 0x0f, 0x22, 0xc0, 0x0f, 0x23, 0xc0, 0x0f, 0x21, 0xd9]);
    const { cr3LoadExiting, cr3StoreExiting, cr8LoadExiting, movDrExiting } = Primary;
    h.setControl("PRIMARY_CONTROLS", cr3LoadExiting | cr3StoreExiting | cr8LoadExiting | movDrExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.controlRegister, qualification: 0x13 });
    h.clearControl("PRIMARY_CONTROLS", cr3StoreExiting);
    h.write("CR3_TARGET0", 0x1000);
    h.write("CR3_TARGET_COUNT", 1);
    expect(h.run()).toMatchObject({ reason: ExitReason.controlRegister, qualification: 8, instructionLength: 4 });
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.moveDr, qualification: 0 });
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.moveDr, qualification: 0x113 });
  });

  it("asks the MSR and I/O bitmaps", () => {
    // mov ecx, 0xc0000082; rdmsr; wrmsr; in al, 0x60; in al, 0x61
    const h = guest("long", [0xb9, 0x82, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30, 0xe4, 0x60, 0xe4, 0x61]);
    const msrs = h.page();
    const io = h.page();
    h.bank.u8[msrs + 3072 + (0x82 >> 3)] = 1 << 2;
    h.bank.u8[io + (0x61 >> 3)] = 1 << 1;
    h.write("MSR_BITMAP", BANK * 2 ** 32 + msrs);
    h.write("IO_BITMAP_A", BANK * 2 ** 32 + io);
    h.write("IO_BITMAP_B", BANK * 2 ** 32 + io);
    h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps | Primary.useIoBitmaps);
    h.cpu.wrmsr(0xc000_0082, 0x7fff_1234n);
    expect(h.run()).toMatchObject({ reason: ExitReason.wrmsr, rip: CODE + 7 });
    expect(h.cpu.gpr(0)).toBe(0x7fff_1234n);
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.io, rip: CODE + 11 });
    expect(h.cpu.gpr(0) & 0xffn).toBe(0xffn);
  });

  it("offsets and scales the TSC", () => {
    const h = guest("long", [0x0f, 0x31, ...CPUID, 0x0f, 0x31, ...HLT]); // rdtsc
    h.setControl("PRIMARY_CONTROLS", Primary.useTscOffsetting);
    h.write("TSC_OFFSET", 1_000_000);
    h.cpu.setTimerDeadline(4000);
    h.cpu.idle();
    h.cpu.setTimerDeadline(Number.POSITIVE_INFINITY);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    expect(h.cpu.gpr(0)).toBe(1_004_000n);
    h.skip();
    h.setControl("SECONDARY_CONTROLS", Secondary.tscScaling);
    h.write("TSC_MULTIPLIER", 1n << 47n);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.cpu.gpr(0)).toBe(1_002_010n);
  });

  it.each([
    ["RDTSCP", [0x0f, 0x01, 0xf9], Secondary.enableRdtscp],
    ["RDPID", [0xf3, 0x0f, 0xc7, 0xf8], Secondary.enableRdtscp],
    ["INVPCID", [0x66, 0x0f, 0x38, 0x82, 0x03], Secondary.enableInvpcid],
    ["XSAVES", [0x0f, 0xc7, 0x2b], Secondary.enableXsaves],
    ["XRSTORS", [0x0f, 0xc7, 0x1b], Secondary.enableXsaves],
  ])("raises #UD for %s when it is not enabled, before all that it could raise else", (_name, code, control) => {
    const h = guest("long", [...code, ...HLT]);
    // At CPL 3, with CR4.TSD and CR0.TS: #GP(0) or #NM is what it is where enabled
    h.write("GUEST_CS_SELECTOR", 0x13);
    h.write("GUEST_CS_ACCESS", 0xa0fb);
    h.write("GUEST_SS_SELECTOR", 0x1b);
    h.write("GUEST_SS_ACCESS", 0xc0f3);
    h.write("GUEST_CR4", h.read("GUEST_CR4") | 0x4_0004);
    h.write("GUEST_CR0", (h.read("GUEST_CR0") | 8) >>> 0);
    h.write("EXCEPTION_BITMAP", (1 << 6) | (1 << 7) | (1 << 13));
    h.clearControl("SECONDARY_CONTROLS", control);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE });
    expect(h.read("EXIT_INTERRUPTION_INFO") & 0xff).toBe(6);
    h.setControl("SECONDARY_CONTROLS", control);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi });
    expect([7, 13]).toContain(h.read("EXIT_INTERRUPTION_INFO") & 0xff);
  });

  it("exits when the preemption timer reaches zero in the guest", () => {
    const h = guest("long", INC_RAX_LOOP);
    h.setControl("PIN_CONTROLS", Pin.preemptionTimer);
    h.setControl("EXIT_CONTROLS", ExitControl.savePreemptionTimer);
    h.write("GUEST_PREEMPTION_TIMER", 100);
    expect(h.run().reason).toBe(ExitReason.preemptionTimer);
    expect(h.cpu.retiredInstructions()).toBe(160);
    expect(h.read("GUEST_PREEMPTION_TIMER")).toBe(0);
  });

  it("halts in guest mode until the timer when HLT does not exit", () => {
    const h = guest("long", [...HLT, ...NOP]);
    h.clearControl("PRIMARY_CONTROLS", Primary.hltExiting);
    h.cpu.setTimerDeadline(1_000_000);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.rdtsc()).toBe(1_000_000);
    expect(h.read("GUEST_ACTIVITY")).toBe(1);
    expect(h.read("GUEST_RIP")).toBe(CODE + 1);
  });

  it("switches EFER and keeps the mode in the entry control when the guest leaves long mode", () => {
    const h = guest("long", [...CPUID]);
    h.write("GUEST_EFER", 0xd00);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    expect(h.cpu.rdmsr(0xc000_0080)).toBe(0xd01n);
    expect(h.read("GUEST_EFER")).toBe(0xd00);
    expect(h.read("ENTRY_CONTROLS") & EntryControl.ia32eModeGuest).not.toBe(0);
  });

  it("runs real-mode code into protected mode", () => {
    // lgdt [0x7f00]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 0x10:0x8100 / 32-bit: mov eax, 0x12345678; hlt
    const code = [0x0f, 0x01, 0x16, 0x00, 0x7f, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xea, 0, 0x81, 0x10, 0];
    const h = guest("real", code);
    h.load([0x1f, 0, 0, 0x50, 0, 0], 0x7f00);
    h.bank.view.setBigUint64(h.guestMemory + 0x5010, 0x00cf_9b00_0000_ffffn, true);
    h.load([0xb8, 0x78, 0x56, 0x34, 0x12, ...HLT], 0x8100);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: 0x8105 });
    expect(h.cpu.gpr(0)).toBe(0x1234_5678n);
    expect(h.read("GUEST_CS_SELECTOR")).toBe(0x10);
    expect(h.read("GUEST_CS_ACCESS")).toBe(0xc09b);
  });
});

it("loops in wall time until an interrupt", () => {
  const h = guest("long", [...CPUID, ...INC_RAX_LOOP], "wall");
  h.run(); // engines take longer to make than the deadline below
  h.skip();
  h.cpu.setTimerDeadline(h.cpu.rdtsc() + 200_000_000);
  expect(h.run().reason).toBe(ExitReason.externalInterrupt);
  expect(h.cpu.rdtsc()).toBeGreaterThanOrEqual(200_000_000);
  expect(h.cpu.retiredInstructions()).toBeGreaterThan(0);
});
