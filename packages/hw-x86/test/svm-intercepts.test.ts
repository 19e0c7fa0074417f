/** Every intercept of SVM: the guest exits with it, and without it goes on to HLT. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { Control, ExitCode, Intercept3, Intercept4, Intercept5, Save } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { CODE, type HarnessOptions, SvmHarness } from "./svm-harness.ts";
import { imm64 } from "./system-machine.ts";

const HLT = [0xf4];
const IDT = 0x6000;
const HANDLER = 0x9000;
const DATA = 0x30_0000;
const MOV = 1n << 63n;

function guest(code: readonly number[], mode: HarnessOptions["mode"] = "long"): SvmHarness {
  const h = new SvmHarness({
    mode,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load([...code, ...HLT]);
  h.load(HLT, HANDLER);
  const gdt = 0x5000;
  h.bank.view.setBigUint64(h.guestMemory + gdt + 0x10, 0x00af_9b00_0000_ffffn, true);
  h.bank.view.setBigUint64(h.guestMemory + gdt + 0x18, 0x00cf_9300_0000_ffffn, true);
  // A TSS and an LDT
  h.bank.view.setBigUint64(h.guestMemory + gdt + 0x20, 0x0000_8900_4000_0067n, true);
  h.bank.view.setBigUint64(h.guestMemory + gdt + 0x30, 0x0000_8200_4000_0067n, true);
  h.setSegment(Save.GDTR, 0, 0, 0x3f, gdt);
  h.setSegment(Save.IDTR, 0, 0, 0xfff, IDT);
  for (const vector of [1, 3, 4, 13, 0x50]) setGate(h, vector);
  h.bank.u32[(h.guestMemory + DATA) >>> 2] = 0xffff;
  return h;
}
/** Code of a page of its own, which the next VMRUN enters. */
let nextPage = 0;
function enterAt(h: SvmHarness, code: readonly number[]): number {
  const start = 0x1_0000 + (nextPage++ % 32) * 0x1000;
  h.load([...code, ...HLT], start);
  h.set64(Save.RIP, start);
  return start;
}
function setGate(h: SvmHarness, vector: number): void {
  const gate = (h.guestMemory + IDT + vector * 16) >>> 2;
  h.bank.u32[gate] = (0x10 << 16) | HANDLER;
  h.bank.u32[gate + 1] = 0x8e00;
}

const at = (opcode: readonly number[]): number[] => [...opcode, 0x04, 0x25, 0, 0, 0x30, 0];
/** MOV AX, selector. */
const ax = (selector: number): number[] => [0x66, 0xb8, selector, 0];

/** Name, code that leads up to the instruction, the instruction, the word of the intercept and its bit, exit code. */
const instructions: readonly [string, number[], number[], number, number, number][] = [
  ["SIDT", [], [0x0f, 0x01, 0x0c, 0x25, 0, 0, 0x30, 0], 3, Intercept3.idtrRead, ExitCode.idtrRead],
  ["SGDT", [], at([0x0f, 0x01]), 3, Intercept3.gdtrRead, ExitCode.gdtrRead],
  ["SLDT", [], [0x0f, 0x00, 0xc0], 3, Intercept3.ldtrRead, ExitCode.ldtrRead],
  ["STR", [], [0x0f, 0x00, 0xc8], 3, Intercept3.trRead, ExitCode.trRead],
  ["LIDT", [], [0x0f, 0x01, 0x1c, 0x25, 0, 0, 0x30, 0], 3, Intercept3.idtrWrite, ExitCode.idtrWrite],
  ["LGDT", [], [0x0f, 0x01, 0x14, 0x25, 0, 0, 0x30, 0], 3, Intercept3.gdtrWrite, ExitCode.gdtrWrite],
  ["LLDT", ax(0x30), [0x0f, 0x00, 0xd0], 3, Intercept3.ldtrWrite, ExitCode.ldtrWrite],
  ["LTR", ax(0x20), [0x0f, 0x00, 0xd8], 3, Intercept3.trWrite, ExitCode.trWrite],
  ["RDTSC", [], [0x0f, 0x31], 3, Intercept3.rdtsc, ExitCode.rdtsc],
  ["PUSHF", [], [0x9c], 3, Intercept3.pushf, ExitCode.pushf],
  ["POPF", [0x6a, 2], [0x9d], 3, Intercept3.popf, ExitCode.popf],
  ["CPUID", [], [0x0f, 0xa2], 3, Intercept3.cpuid, ExitCode.cpuid],
  ["INVD", [], [0x0f, 0x08], 3, Intercept3.invd, ExitCode.invd],
  ["PAUSE", [], [0xf3, 0x90], 3, Intercept3.pause, ExitCode.pause],
  ["INT n", [], [0xcd, 0x50], 3, Intercept3.softwareInterrupt, ExitCode.softwareInterrupt],
  ["RDTSCP", [], [0x0f, 0x01, 0xf9], 4, Intercept4.rdtscp, ExitCode.rdtscp],
  ["ICEBP", [], [0xf1], 4, Intercept4.icebp, ExitCode.icebp],
  ["WBINVD", [], [0x0f, 0x09], 4, Intercept4.wbinvd, ExitCode.wbinvd],
  ["MONITOR", [0x31, 0xc9, 0xb8, 0, 0, 0x30, 0], [0x0f, 0x01, 0xc8], 4, Intercept4.monitor, ExitCode.monitor],
  ["MWAIT", [0x31, 0xc9], [0x0f, 0x01, 0xc9], 4, Intercept4.mwait, ExitCode.mwait],
  ["armed MWAIT", [0x31, 0xc9], [0x0f, 0x01, 0xc9], 4, Intercept4.mwaitArmed, ExitCode.mwaitArmed],
];

describe("instruction intercepts", () => {
  it.each(instructions)("%s", (_name, before, code, word, intercept, exit) => {
    const h = guest([...before, ...code]);
    const field = word === 3 ? Control.INTERCEPT_3 : Control.INTERCEPT_4;
    h.setBits(field, intercept);
    const rsp = before[0] === 0x6a ? 0x6ff8n : 0x7000n;
    expect(h.run()).toMatchObject({ code: exit, rip: CODE + before.length });
    expect(h.get64(Control.NEXT_RIP)).toBe(BigInt(CODE + before.length + code.length));
    expect(h.get64(Save.RSP)).toBe(rsp);
    h.clearBits(field, intercept);
    expect(h.run().code).toBe(ExitCode.hlt);
  });

  it("INT n tells its vector, INVLPG its address", () => {
    const h = guest([0xcd, 0x50]);
    h.setBits(Control.INTERCEPT_3, Intercept3.softwareInterrupt | Intercept3.invlpg);
    expect(h.run()).toMatchObject({ code: ExitCode.softwareInterrupt, info1: 0x50n });
    const start = enterAt(h, [0x0f, 0x01, 0x3c, 0x25, 0, 0, 0x30, 0]);
    expect(h.run()).toMatchObject({ code: ExitCode.invlpg, info1: BigInt(DATA), rip: start });
    expect(h.get64(Control.NEXT_RIP)).toBe(BigInt(start + 8));
  });

  it("INVPCID tells its descriptor's address and its type, whatever they are", () => {
    // invpcid rax, [0x300000]; and fs:[rbx], with addresses and types that it would refuse
    const h = guest([0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0, 0, 0x30, 0]);
    h.set32(Control.INTERCEPT_5, Intercept5.invpcid);
    h.set64(Save.RAX, 2);
    expect(h.run()).toMatchObject({ code: ExitCode.invpcid, info1: BigInt(DATA), info2: 2n, rip: CODE });
    expect(h.get64(Control.NEXT_RIP)).toBe(BigInt(CODE + 10));
    const start = enterAt(h, [0x64, 0x66, 0x0f, 0x38, 0x82, 0x03]);
    h.set64(Save.RAX, 0x1_0000_0007n);
    h.cpu.setGpr(3, 1n << 60n);
    h.set64(Save.FS + 8, 0x1000);
    h.cpu.svm.vmload(h.vmcb);
    expect(h.run()).toMatchObject({ code: ExitCode.invpcid, info1: (1n << 60n) + 0x1000n, info2: 0x1_0000_0007n, rip: start });
  });

  it("IRET, before anything of it", () => {
    const h = guest([0x48, 0xcf]);
    h.setBits(Control.INTERCEPT_3, Intercept3.iret);
    expect(h.run()).toMatchObject({ code: ExitCode.iret, rip: CODE });
    expect(h.get64(Control.NEXT_RIP)).toBe(BigInt(CODE + 2));
  });

  it("RDPMC, INVLPGA and RSM, which fault where they do not exit", () => {
    for (const [code, word, intercept, exit, vector] of [
      [[0x0f, 0x33], Control.INTERCEPT_3, Intercept3.rdpmc, ExitCode.rdpmc, 13],
      [[0x0f, 0x01, 0xdf], Control.INTERCEPT_3, Intercept3.invlpga, ExitCode.invlpga, 6],
      [[0x0f, 0xaa], Control.INTERCEPT_3, Intercept3.rsm, ExitCode.rsm, 6],
    ] as const) {
      const h = guest(code);
      // There are counters 0 to 5
      h.cpu.setGpr(1, 6n);
      h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << vector);
      expect(h.run().code).toBe(ExitCode.exception + vector);
      h.setBits(word, intercept);
      expect(h.run().code).toBe(exit);
    }
  });

  it("checks privilege before the intercept", () => {
    const h = guest([0x0f, 0x01, 0xdc]);
    h.setSegment(Save.CS, 0x13, 0xafb, 0xffff_ffff);
    h.setSegment(Save.SS, 0x1b, 0xcf3, 0xffff_ffff);
    h.set8(Save.CPL, 3);
    h.setBits(Control.INTERCEPT_4, Intercept4.stgi);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 13);
    expect(h.run().code).toBe(ExitCode.exception + 13);
    expect(h.get8(Save.CPL)).toBe(3);
  });
});

describe("control registers", () => {
  it.each([0, 2, 3, 4, 8])("reads and writes of CR%i, with the register", (cr) => {
    const prefix = cr === 8 ? [0x44] : [];
    // mov rcx, crN; mov crN, rcx
    const h = guest([...prefix, 0x0f, 0x20, 0xc1 | ((cr & 7) << 3), ...prefix, 0x0f, 0x22, 0xc1 | ((cr & 7) << 3)]);
    h.set32(Control.INTERCEPT_CR, (1 << cr) | (1 << (16 + cr)));
    expect(h.run()).toMatchObject({ code: ExitCode.readCr + cr, info1: MOV | 1n, rip: CODE });
    h.set32(Control.INTERCEPT_CR, 1 << (16 + cr));
    expect(h.run()).toMatchObject({ code: ExitCode.writeCr + cr, info1: MOV | 1n });
    h.set32(Control.INTERCEPT_CR, 0);
    expect(h.run().code).toBe(ExitCode.hlt);
  });

  it("SMSW reads, CLTS and LMSW write CR0, without a register to tell", () => {
    const h = guest([0x0f, 0x01, 0xe0]);
    h.set32(Control.INTERCEPT_CR, 0x1_0001);
    expect(h.run()).toMatchObject({ code: ExitCode.readCr, info1: 0n });
    enterAt(h, [0x0f, 0x06]);
    expect(h.run()).toMatchObject({ code: ExitCode.writeCr, info1: 0n });
    enterAt(h, [0x0f, 0x01, 0xf0]);
    expect(h.run()).toMatchObject({ code: ExitCode.writeCr, info1: 0n });
  });

  it("selective CR0 writes are those of more than TS and MP", () => {
    // mov rax, cr0; xor al, imm8; mov cr0, rax; hlt
    const flip = (bits: number): number[] => [0x0f, 0x20, 0xc0, 0x34, bits, 0x0f, 0x22, 0xc0];
    const h = guest(flip(0x0a));
    h.setBits(Control.INTERCEPT_3, Intercept3.cr0Selective);
    expect(h.run().code).toBe(ExitCode.hlt);
    const start = enterAt(h, flip(0x04));
    expect(h.run()).toMatchObject({ code: ExitCode.cr0Selective, info1: MOV, rip: start + 5 });
  });

  it("DR accesses, with the register", () => {
    // mov rdx, dr7; mov dr0, rdx
    const h = guest([0x0f, 0x21, 0xfa, 0x0f, 0x23, 0xc2]);
    h.set32(Control.INTERCEPT_DR, 0x80);
    expect(h.run()).toMatchObject({ code: ExitCode.readDr + 7, info1: 2n, rip: CODE });
    h.set32(Control.INTERCEPT_DR, 1 << 16);
    expect(h.run()).toMatchObject({ code: ExitCode.writeDr, info1: 2n, rip: CODE + 3 });
    h.set32(Control.INTERCEPT_DR, 0);
    expect(h.run().code).toBe(ExitCode.hlt);
  });

  it("traps after writes of EFER and CRs", () => {
    // mov ecx, efer; mov eax, 0x1d00; xor edx, edx; wrmsr
    const h = guest([0xb9, 0x80, 0, 0, 0xc0, 0xb8, 0, 0x1d, 0, 0, 0x31, 0xd2, 0x0f, 0x30]);
    h.clearBits(Control.INTERCEPT_3, Intercept3.msr);
    h.setBits(Control.INTERCEPT_4, Intercept4.eferWriteTrap);
    expect(h.run()).toMatchObject({ code: ExitCode.eferWriteTrap, info1: 0x1d00n, rip: CODE + 14 });
    expect(h.get64(Save.EFER)).toBe(0x1d00n);
    expect(h.run().code).toBe(ExitCode.hlt);
    // mov rcx, cr4; or cl, 4; mov cr4, rcx
    const start = enterAt(h, [0x0f, 0x20, 0xe1, 0x80, 0xc9, 4, 0x0f, 0x22, 0xe1]);
    h.setBits(Control.INTERCEPT_4, 1 << 20);
    expect(h.run()).toMatchObject({ code: ExitCode.crWriteTrap + 4, info1: 0x24n, rip: start + 9 });
    expect(h.run().code).toBe(ExitCode.hlt);
  });
});

describe("exceptions", () => {
  it("INT3 is told where it is, with what follows it", () => {
    const h = guest([0xcc]);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 3);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + 3, rip: CODE });
    expect(h.get64(Control.NEXT_RIP)).toBe(BigInt(CODE + 1));
    h.clearBits(Control.INTERCEPT_EXCEPTIONS, 1 << 3);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
  });

  it("#DB is told with DR6 as it would be", () => {
    const h = guest([0x90]);
    h.set64(Save.RFLAGS, 0x102);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 1);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + 1, rip: CODE + 1 });
    expect(h.get64(Save.DR6)).toBe(0xffff_4ff0n);
  });

  it("#GP comes with its error code", () => {
    // mov ds, ax with a selector beyond the GDT
    const h = guest([...ax(0x78), 0x8e, 0xd8]);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 13);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + 13, info1: 0x78n, rip: CODE + 4 });
  });

  it("a triple fault is a shutdown", () => {
    const h = guest([0xcc]);
    h.setSegment(Save.IDTR, 0, 0, 0);
    expect(h.run()).toMatchObject({ code: ExitCode.shutdown, rip: CODE });
    h.clearBits(Control.INTERCEPT_3, Intercept3.shutdown);
    expect(() => h.run()).toThrow("shutdown");
  });

  it("tells tasks that are switched to", () => {
    // jmp far [0x300000] in 32-bit code: a TSS
    const h = guest([0xff, 0x2d, 0, 0, 0x30, 0], "real");
    h.set64(Save.CR0, 0x11);
    h.setSegment(Save.CS, 0x10, 0xc9b, 0xffff_ffff);
    for (const segment of [Save.ES, Save.SS, Save.DS]) h.setSegment(segment, 0x18, 0xc93, 0xffff_ffff);
    h.load([0, 0, 0, 0, 0x20, 0], DATA);
    h.setBits(Control.INTERCEPT_3, Intercept3.taskSwitch);
    expect(h.run()).toMatchObject({ code: ExitCode.taskSwitch, info1: 0x20n, info2: 1n << 38n, rip: CODE });
  });
});

describe("time", () => {
  it("is scaled, then offset", () => {
    // rdtsc at tick 0 of the guest: two instructions retired
    const h = guest([0x90, 0x90, 0x0f, 0x31]);
    h.set64(Control.TSC_OFFSET, 1_000_000);
    h.cpu.wrmsr(0xc000_0104, 3n << 31n);
    expect(h.run().code).toBe(ExitCode.hlt);
    expect(h.get64(Save.RAX)).toBe(1_000_060n);
    h.cpu.wrmsr(0xc000_0104, 1n << 32n);
    h.set64(Save.RIP, CODE);
    h.set64(Control.TSC_OFFSET, 0xffff_ffff_ffff_ffffn);
    const before = BigInt(h.cpu.rdtsc());
    expect(h.run().code).toBe(ExitCode.hlt);
    expect(h.get64(Save.RAX)).toBe(before + 39n);
  });

  it("filters PAUSE by count, and starts over after a long while without one", () => {
    const pauses = [0xf3, 0x90, 0xf3, 0x90, 0xf3, 0x90];
    const h = guest(pauses);
    h.setBits(Control.INTERCEPT_3, Intercept3.pause);
    h.set32(Control.PAUSE_FILTER_THRESHOLD, 2 << 16);
    expect(h.run()).toMatchObject({ code: ExitCode.pause, rip: CODE + 4 });
    h.set64(Save.RIP, CODE);
    h.set32(Control.PAUSE_FILTER_THRESHOLD, 3 << 16);
    expect(h.run().code).toBe(ExitCode.hlt);
    // Two PAUSEs, 40 ticks apart because of the NOP: too far for a threshold of 39, near enough for one of 40
    for (const [threshold, code] of [
      [39, ExitCode.hlt],
      [40, ExitCode.pause],
    ] as const) {
      enterAt(h, [0xf3, 0x90, 0x90, 0xf3, 0x90]);
      h.set32(Control.PAUSE_FILTER_THRESHOLD, (1 << 16) | threshold);
      expect(h.run().code).toBe(code);
    }
  });
});

describe("virtual NMIs", () => {
  const ENABLE = (1 << 24) | (1 << 26);
  const PENDING = 1 << 11;
  const MASKED = 1 << 12;

  it("are taken when nothing masks them, and mask further ones until IRET", () => {
    const h = guest([0x90]);
    setGate(h, 2);
    // inc rax; iretq
    h.load([0x48, 0xff, 0xc0, 0x48, 0xcf], HANDLER);
    h.set32(Control.V_INTERRUPT, ENABLE | PENDING);
    h.setBits(Control.INTERCEPT_3, Intercept3.iret);
    expect(h.run()).toMatchObject({ code: ExitCode.iret, rip: HANDLER + 3 });
    expect(h.get32(Control.V_INTERRUPT)).toBe(ENABLE | MASKED);
    h.set32(Control.V_INTERRUPT, ENABLE | MASKED | PENDING);
    h.clearBits(Control.INTERCEPT_3, Intercept3.iret);
    // IRET, and at once the next NMI
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: CODE + 1 });
    expect(h.get32(Control.V_INTERRUPT)).toBe(ENABLE);
    expect(h.get64(Save.RAX)).toBe(2n);
  });
});

describe("virtual GIF", () => {
  it("holds virtual interrupts back until the guest's STGI", () => {
    const h = guest([0x90, 0x0f, 0x01, 0xdc, 0x90]);
    setGate(h, 0x51);
    h.set64(Save.RFLAGS, 0x202);
    h.set32(Control.V_VECTOR, 0x51);
    h.set32(Control.V_INTERRUPT, (1 << 25) | (1 << 24) | (1 << 20) | (1 << 8));
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect(h.guestU64(0x7000 - 40)).toBe(BigInt(CODE + 4));
    expect(h.get32(Control.V_INTERRUPT) & 0x300).toBe(0x200);
  });
});

describe("physical interrupts", () => {
  it("wait for the guest's flag without virtual masking", () => {
    // nop; sti; nop; nop
    const h = guest([0x90, 0xfb, 0x90, 0x90]);
    h.set32(Control.V_INTERRUPT, 0);
    h.cpu.setTimerDeadline(0);
    expect(h.run()).toMatchObject({ code: ExitCode.intr, rip: CODE + 3 });
    h.set64(Save.RIP, CODE);
    h.set64(Save.RFLAGS, 2);
    h.set32(Control.V_INTERRUPT, 1 << 24);
    expect(h.run()).toMatchObject({ code: ExitCode.intr, rip: CODE });
  });

  it("go to the guest's own handler where they are not intercepted", () => {
    const h = guest([0x90, 0x90]);
    setGate(h, 0xfd);
    h.set64(Save.RFLAGS, 0x202);
    h.clearBits(Control.INTERCEPT_3, Intercept3.intr);
    h.cpu.sendIpi(0);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect(h.cpu.interruptPending()).toBe(false);
  });
});

describe("ASIDs", () => {
  // mov eax, [0x300000]
  const LOAD = [0x8b, 0x04, 0x25, 0, 0, 0x30, 0];

  it.each([
    ["nothing", 0, 1n],
    ["all", 1, 2n],
    ["the guest's own", 3, 2n],
    ["the guest's own but for global pages", 7, 2n],
  ])("TLB_CONTROL flushes %s", (_name, control, expected) => {
    const h = guest(LOAD);
    const other = h.page();
    h.bank.u32[(h.guestMemory + DATA) >>> 2] = 1;
    h.bank.u32[other >>> 2] = 2;
    h.run();
    expect(h.get64(Save.RAX)).toBe(1n);
    h.map(DATA, other, 7);
    h.set64(Save.RIP, CODE);
    h.set8(Control.TLB_CONTROL, control);
    h.run();
    expect(h.get64(Save.RAX)).toBe(expected);
  });

  it("INVLPGA flushes those of the ASID it names", () => {
    const h = guest(LOAD);
    const other = h.page();
    h.bank.u32[(h.guestMemory + DATA) >>> 2] = 1;
    h.bank.u32[other >>> 2] = 2;
    h.run();
    h.map(DATA, other, 7);
    h.cpu.svm.invlpga(BigInt(DATA), 2);
    h.set64(Save.RIP, CODE);
    h.run();
    expect(h.get64(Save.RAX)).toBe(1n);
    h.cpu.svm.invlpga(BigInt(DATA), 1);
    h.set64(Save.RIP, CODE);
    h.run();
    expect(h.get64(Save.RAX)).toBe(2n);
  });

  const PCIDE = 0x2_0000;
  const NO_FLUSH = 1n << 63n;
  /** A guest that has read DATA under process-context identifier 1, whose table leads elsewhere since; it runs under 2. */
  function turned(): { h: SvmHarness; load: (identifier: number) => bigint } {
    const h = guest([0xf4]);
    const root = h.get64(Save.CR3);
    h.set64(Save.CR4, h.get64(Save.CR4) | BigInt(PCIDE));
    h.bank.u32[(h.guestMemory + DATA) >>> 2] = 1;
    h.bank.u32[(h.guestMemory + DATA - 0x20_0000) >>> 2] = 2;
    const turn = (identifier: number, code: readonly number[]): void => {
      const cr3 = root | BigInt(identifier) | NO_FLUSH;
      // mov rax, cr3 as it is to be; mov cr3, rax
      enterAt(h, [0x48, 0xb8, ...imm64(cr3), 0x0f, 0x22, 0xd8, ...code]);
      expect(h.run().code).toBe(ExitCode.hlt);
    };
    const load = (identifier: number): bigint => {
      turn(identifier, LOAD);
      return h.get64(Save.RAX);
    };
    expect(load(1)).toBe(1n);
    // The second 2 MiB become the first
    h.bank.u32[(h.guestMemory + Number(root) + 0x2008) >>> 2] = 0x87;
    turn(2, []);
    return { h, load };
  }

  it("have process-context identifiers of their own", () => {
    const kept = turned();
    expect(kept.load(1)).toBe(1n);
    const other = turned();
    other.h.set32(Control.ASID, 2);
    expect(other.load(1)).toBe(2n);
  });

  it.each([
    ["TLB_CONTROL 1", (h: SvmHarness) => h.set8(Control.TLB_CONTROL, 1)],
    ["TLB_CONTROL 3", (h: SvmHarness) => h.set8(Control.TLB_CONTROL, 3)],
    ["TLB_CONTROL 7", (h: SvmHarness) => h.set8(Control.TLB_CONTROL, 7)],
    ["INVLPGA", (h: SvmHarness) => h.cpu.svm.invlpga(BigInt(DATA), 1)],
  ] as [string, (h: SvmHarness) => void][])("lose all of their process-context identifiers by %s", (_name, flush) => {
    const { h, load } = turned();
    flush(h);
    expect(load(1)).toBe(2n);
  });

  it("keeps translations of different ASIDs apart", () => {
    const h = guest(LOAD);
    h.bank.u32[(h.guestMemory + DATA) >>> 2] = 1;
    const other = h.page();
    h.bank.u32[other >>> 2] = 2;
    h.run();
    h.map(DATA, other, 7);
    h.set64(Save.RIP, CODE);
    h.set32(Control.ASID, 2);
    h.run();
    expect(h.get64(Save.RAX)).toBe(2n);
  });
});

describe("without nested paging", () => {
  it("guest physical addresses are physical ones", () => {
    // A real-mode guest cannot reach them: 64-bit, with page tables that map where the bank lies
    const h = guest(HLT);
    const tables = [h.page(), h.page(), h.page()] as const;
    h.setEntry(tables[0], tables[1] | 7);
    h.setEntry(tables[1], tables[2] | 7);
    for (let i = 0; i < 512; i++) h.setEntry(tables[2] + i * 8, (i * 0x20_0000) | 0x87);
    h.set64(Save.CR3, BigInt(h.bank.id) * 0x1_0000_0000n + BigInt(tables[0]));
    h.set64(Save.RIP, h.guestMemory + CODE);
    h.set32(Control.NESTED, 0);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: h.guestMemory + CODE });
  });
});
