/** Debug registers and debug exceptions in guest mode, of both vendors. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { Control, ExitCode, Save } from "../src/svm/vmcb.ts";
import { ExitReason, Primary } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { SvmHarness } from "./svm-harness.ts";
import { CODE, VmxHarness } from "./vmx-harness.ts";

const TF = 0x100;
const RF = 0x1_0000;
const BS = 0x4000;
const ENABLED = 0x1000;
const DB = 1;
const MOV_SS = 2;
const CPUID = [0x0f, 0xa2];
const NOP = [0x90];
const HLT = [0xf4];
const MOV_SS_ECX = [0x8e, 0xd1];
const MOV_SS_MEMORY = [0x8e, 0x14, 0x25, 0, 0x70, 0, 0];
const MOV_EAX_DR0 = [0x0f, 0x21, 0xc0];
const MOV_DR4_EAX = [0x0f, 0x23, 0xe0];
const DATA = 0x7000;
const IDT = 0x6000;
const HANDLER = 0x9000;
const GDT = 0x5000;

const options = {
  mode: "long",
  engine: (given: ConstructorParameters<typeof Engine>[0]) =>
    new Engine({ ...given, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
} as const;

function setTables(h: VmxHarness | SvmHarness, vectors: readonly number[]): void {
  for (const vector of vectors) {
    const gate = (h.guestMemory + IDT + vector * 16) >>> 2;
    h.bank.u32[gate] = (0x10 << 16) | HANDLER;
    h.bank.u32[gate + 1] = 0x8e00;
  }
  h.bank.view.setBigUint64(h.guestMemory + GDT + 0x10, 0x00af_9b00_0000_ffffn, true);
  h.bank.view.setBigUint64(h.guestMemory + GDT + 0x18, 0x00cf_9300_0000_ffffn, true);
  h.bank.u32[(h.guestMemory + DATA) >>> 2] = 0x18;
  h.load(HLT, HANDLER);
}

describe("VMX", () => {
  function guest(...code: number[]): VmxHarness {
    const h = new VmxHarness(options);
    h.load(code);
    setTables(h, [DB, 3, 6, 13]);
    h.write("GUEST_IDTR_BASE", IDT);
    h.write("GUEST_IDTR_LIMIT", 0xfff);
    h.write("GUEST_GDTR_BASE", GDT);
    h.write("GUEST_GDTR_LIMIT", 0x1f);
    h.write("GUEST_RSP", 0x7800);
    h.cpu.setGpr(1, 0x18n);
    for (let index = 0; index < 4; index++) h.cpu.writeDr(index, 0n);
    h.cpu.writeDr(6, 0xffff_0ff0n);
    return h;
  }
  const intercept = (h: VmxHarness): void => h.write("EXCEPTION_BITMAP", 1 << DB);

  it("tells causes in the qualification and leaves DR6, DR7 and DEBUGCTL alone", () => {
    const h = guest(...NOP, ...NOP, ...HLT);
    intercept(h);
    h.write("GUEST_DR7", 0x402);
    h.write("GUEST_DEBUGCTL", 2);
    h.cpu.writeDr(0, BigInt(CODE + 1));
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: 1, rip: CODE + 1 });
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_0301);
    expect(h.cpu.readDr(6)).toBe(0xffff_0ff0n);
    expect(h.read("GUEST_DEBUGCTL")).toBe(2);
    expect(h.read("GUEST_RFLAGS") & RF).toBe(0);
    // RF lets it pass
    h.write("GUEST_RFLAGS", 2 | RF);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 2 });
    h.write("GUEST_RIP", CODE);
    h.write("GUEST_DR7", 0x400);
    h.write("GUEST_RFLAGS", 2 | TF);
    h.write("GUEST_DEBUGCTL", 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: BS, rip: CODE + 1 });
  });

  it("exits for MOV DR before #UD, #GP and general detect", () => {
    const h = guest(...MOV_EAX_DR0, ...MOV_DR4_EAX, ...HLT);
    h.setControl("PRIMARY_CONTROLS", Primary.movDrExiting);
    h.write("GUEST_DR7", 0x2400);
    h.write("GUEST_CR4", h.read("GUEST_CR4") | 8);
    expect(h.run()).toMatchObject({ reason: ExitReason.moveDr, qualification: 0x10, instructionLength: 3 });
    h.skip();
    expect(h.run()).toMatchObject({ reason: ExitReason.moveDr, qualification: 4 });
    h.clearControl("PRIMARY_CONTROLS", Primary.movDrExiting);
    h.write("EXCEPTION_BITMAP", 1 << 6);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi });
    expect(h.read("EXIT_INTERRUPTION_INFO")).toBe(0x8000_0306);
    expect(h.read("GUEST_RFLAGS") & RF).toBe(RF);
  });

  it("saves what MOV SS holds off, and takes it up again", () => {
    const h = guest(...MOV_SS_MEMORY, ...CPUID, ...NOP, ...HLT);
    intercept(h);
    h.cpu.writeDr(1, BigInt(DATA));
    h.write("GUEST_DR7", 0x400 | 8 | (7 << 20));
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid, rip: CODE + 7 });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(MOV_SS);
    expect(h.read("GUEST_PENDING_DEBUG")).toBe(ENABLED | 2);
    // Entered again as it is, it exits again; skipped with its shadow, the trap comes
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid });
    expect(h.read("GUEST_PENDING_DEBUG")).toBe(ENABLED | 2);
    h.skip();
    h.write("GUEST_INTERRUPTIBILITY", 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: 2, rip: CODE + 9 });
    expect(h.read("GUEST_PENDING_DEBUG")).toBe(0);
  });

  it("has a single step pending behind MOV SS, and refuses an entry that has not", () => {
    const h = guest(...MOV_SS_ECX, ...CPUID, ...HLT);
    h.write("GUEST_RFLAGS", 2 | TF);
    expect(h.run()).toMatchObject({ reason: ExitReason.cpuid });
    expect(h.read("GUEST_PENDING_DEBUG")).toBe(BS);
    h.write("GUEST_PENDING_DEBUG", 0);
    expect(h.run().reason).toBe(0x8000_0000 + ExitReason.entryFailureGuestState);
  });

  it("delivers pending debug exceptions that are valid, and drops them where an event is injected", () => {
    const h = guest(...NOP, ...HLT);
    h.write("GUEST_PENDING_DEBUG", 3);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 1 });
    h.write("GUEST_RIP", CODE);
    h.write("GUEST_PENDING_DEBUG", ENABLED | 3);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
    expect(h.cpu.readDr(6)).toBe(0xffff_0ff3n);
    h.cpu.writeDr(6, 0xffff_0ff0n);
    h.write("GUEST_RIP", CODE);
    h.write("GUEST_PENDING_DEBUG", ENABLED | 3);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0306);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
    expect(h.cpu.readDr(6)).toBe(0xffff_0ff0n);
  });

  it("exits for the monitor trap flag before the traps of the instruction, which stay pending", () => {
    const h = guest(0x89, 0x04, 0x25, 0, 0x70, 0, 0, ...HLT);
    intercept(h);
    h.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    h.cpu.writeDr(3, BigInt(DATA));
    h.write("GUEST_DR7", 0x400 | 0x80 | (1 << 28));
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: CODE + 7 });
    expect(h.read("GUEST_PENDING_DEBUG")).toBe(ENABLED | 8);
    h.clearControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, qualification: 8, rip: CODE + 7 });
  });
});

describe("SVM", () => {
  function guest(...code: number[]): SvmHarness {
    const h = new SvmHarness(options);
    h.load(code);
    setTables(h, [DB, 6, 13]);
    h.setSegment(Save.GDTR, 0, 0, 0x3f, GDT);
    h.setSegment(Save.IDTR, 0, 0, 0xfff, IDT);
    for (let index = 0; index < 4; index++) h.cpu.writeDr(index, 0n);
    return h;
  }

  it("exits for #DB with DR6 in the VMCB", () => {
    const h = guest(...NOP, ...NOP, ...HLT);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << DB);
    h.set64(Save.DR6, 0xffff_0ff0);
    h.set64(Save.DR7, 0x402);
    h.cpu.writeDr(0, BigInt(CODE + 1));
    expect(h.run()).toMatchObject({ code: ExitCode.exception + DB, rip: CODE + 1 });
    expect(h.get64(Save.DR6)).toBe(0xffff_0ff1n);
    h.set64(Save.RFLAGS, 2 | RF);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: CODE + 2 });
  });

  it("exits for MOV DR after #UD, #GP and general detect", () => {
    const h = guest(...MOV_EAX_DR0, ...HLT);
    h.setBits(Control.INTERCEPT_DR, 1);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << DB);
    h.set64(Save.DR7, 0x2400);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + DB });
    h.set64(Save.DR7, 0x400);
    expect(h.run()).toMatchObject({ code: ExitCode.readDr });
  });
});
