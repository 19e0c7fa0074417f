/** Small guests under SVM, on the real engine: each asserts the exits of one mechanism. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { Control, ExitCode, Intercept3, Intercept4, Save } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { GDT, GDT_LIMIT, HANDLER, IDT, IDT_LIMIT, writeGate } from "./guest-gates.ts";
import { CODE, type HarnessOptions, SvmHarness } from "./svm-harness.ts";

const CPUID = [0x0f, 0xa2];
const HLT = [0xf4];
const NOP = [0x90];
const STI = [0xfb];
const VMMCALL = [0x0f, 0x01, 0xd9];
const INC_RAX_LOOP = [0x48, 0xff, 0xc0, 0xeb, 0xfb];

function guest(mode: HarnessOptions["mode"], code: readonly number[], clock: HarnessOptions["clock"] = "icount"): SvmHarness {
  const h = new SvmHarness({
    mode,
    clock,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  return h;
}

function setGate(h: SvmHarness, vector: number, handler = HANDLER): void {
  writeGate(h, vector, handler);
  h.setSegment(Save.IDTR, 0, 0, IDT_LIMIT, IDT);
  h.setSegment(Save.GDTR, 0, 0, GDT_LIMIT, GDT);
}

describe.each(["real", "long"] as const)("a guest in %s mode", (mode) => {
  it("exits for CPUID, HLT and VMMCALL and goes on after them", () => {
    const h = guest(mode, [...CPUID, ...NOP, ...HLT, ...VMMCALL]);
    expect(h.run()).toEqual({ code: ExitCode.cpuid, info1: 0n, info2: 0n, rip: CODE });
    expect(h.cpu.svm.gif).toBe(false);
    h.skip();
    expect(h.run()).toEqual({ code: ExitCode.hlt, info1: 0n, info2: 0n, rip: CODE + 3 });
    expect(h.cpu.retiredInstructions()).toBe(1);
    h.skip();
    expect(h.run()).toMatchObject({ code: ExitCode.vmmcall, rip: CODE + 4 });
  });

  it("runs what is not intercepted", () => {
    const h = guest(mode, [0xb8, 0, 0, 0, 0, ...CPUID, ...HLT]);
    h.clearBits(Control.INTERCEPT_3, Intercept3.cpuid);
    expect(h.run().code).toBe(ExitCode.hlt);
    expect([h.cpu.gpr(3), h.cpu.gpr(2), h.cpu.gpr(1)]).toEqual([0x6874_7541n, 0x6974_6e65n, 0x444d_4163n]);
    expect(h.get64(Save.RAX)).toBe(13n);
  });

  it("keeps the shadow of STI and of MOV SS for an instruction that exits in it", () => {
    const movSs = mode === "long" ? [0x8e, 0xd1] : [0x8e, 0xd0];
    const h = guest(mode, [...STI, ...HLT, ...movSs, ...CPUID, ...HLT]);
    if (mode === "long") h.cpu.setGpr(1, 0x18n);
    setGate(h, 13);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: CODE + 1 });
    expect(h.get32(Control.INTERRUPT_STATE)).toBe(3);
    h.skip();
    h.set32(Control.INTERRUPT_STATE, 0);
    expect(h.run()).toMatchObject({ code: ExitCode.cpuid, rip: CODE + 4 });
    expect(h.get32(Control.INTERRUPT_STATE)).toBe(3);
    h.skip();
    h.set32(Control.INTERRUPT_STATE, 0);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: CODE + 6 });
  });

  it("tells port, size, direction and where to go on of I/O", () => {
    // out 0xf4, al; mov dx, 0x3f8; in eax, dx (in ax, dx in real mode)
    const long = [0xe6, 0xf4, 0x66, 0xba, 0xf8, 0x03, 0xed];
    const h = guest(
      mode,
      long.filter((_, i) => mode === "long" || i !== 2),
    );
    const addressSize = mode === "long" ? 0x200n : 0x80n;
    expect(h.run()).toMatchObject({
      code: ExitCode.io,
      info1: (0xf4n << 16n) | 0x10n | addressSize,
      info2: BigInt(CODE + 2),
    });
    h.skip();
    const size = mode === "long" ? 0x40n : 0x20n;
    expect(h.run()).toMatchObject({ code: ExitCode.io, info1: (0x3f8n << 16n) | size | addressSize | 1n });
  });

  it("exits for a physical interrupt at the exact instruction under icount", () => {
    const h = guest(mode, mode === "long" ? INC_RAX_LOOP : [0x66, 0xff, 0xc0, 0xeb, 0xfb]);
    h.cpu.setTimerDeadline(20 * 1001);
    expect(h.run().code).toBe(ExitCode.intr);
    expect(h.cpu.retiredInstructions()).toBe(1001);
    expect(h.get64(Save.RAX)).toBe(501n);
    expect(h.get64(Save.RIP)).toBe(BigInt(CODE + 3));
  });
});

describe("nested paging", () => {
  // mov eax, [0x300000]; mov [0x300000], eax
  const touch = [0x8b, 0x04, 0x25, 0, 0, 0x30, 0, 0x89, 0x04, 0x25, 0, 0, 0x30, 0];

  it("tells reads from writes, with the instruction's bytes, and goes on once the page is mapped", () => {
    const h = guest("long", [...touch, ...HLT]);
    const entry = h.nptEntry(0x30_0000);
    const low = h.bank.u32[entry >>> 2] as number;
    h.setEntry(entry, 0);
    expect(h.run()).toEqual({ code: ExitCode.nestedPageFault, info1: 0x1_0000_0004n, info2: 0x30_0000n, rip: CODE });
    expect(h.get8(Control.BYTES_FETCHED)).toBe(15);
    expect(Array.from({ length: 7 }, (_, i) => h.get8(Control.INSTRUCTION_BYTES + i))).toEqual(touch.slice(0, 7));
    h.setEntry(entry, low & ~2);
    expect(h.run()).toEqual({ code: ExitCode.nestedPageFault, info1: 0x1_0000_0007n, info2: 0x30_0000n, rip: CODE + 7 });
    expect(Array.from({ length: 7 }, (_, i) => h.get8(Control.INSTRUCTION_BYTES + i))).toEqual(touch.slice(7));
    expect((h.bank.u32[entry >>> 2] as number) & 0x60).toBe(0x20);
    h.setEntry(entry, low);
    expect(h.run().code).toBe(ExitCode.hlt);
    expect((h.bank.u32[entry >>> 2] as number) & 0x60).toBe(0x60);
  });

  it("tells the bytes of hot code's instructions, up to the end of their page", () => {
    // mov ecx, 1000; L: mov eax, [rbx]; add rbx, 4; loop L; at the end of a page
    const h = guest("long", []);
    const code = [0xb9, 0xe8, 3, 0, 0, 0x8b, 0x03, 0x48, 0x83, 0xc3, 0x04, 0xe2, 0xf8];
    const start = CODE + 0x1000 - code.length;
    h.load([...code, ...HLT], start);
    h.cpu.setGpr(3, 0x30_0000n - 3600n);
    h.set64(Save.RIP, start);
    const entry = h.nptEntry(0x30_0000);
    const low = h.bank.u32[entry >>> 2] as number;
    h.setEntry(entry, 0);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info2: 0x30_0000n, rip: start + 5 });
    expect(h.get8(Control.BYTES_FETCHED)).toBe(8);
    expect(Array.from({ length: 8 }, (_, i) => h.get8(Control.INSTRUCTION_BYTES + i))).toEqual(code.slice(5));
    h.setEntry(entry, low);
    expect(h.run().code).toBe(ExitCode.hlt);
  });

  it("exits for a fetch from a page with NX set", () => {
    const h = guest("long", HLT);
    const entry = h.nptEntry(CODE);
    const low = h.bank.u32[entry >>> 2] as number;
    h.setEntry(entry, low, 0x8000_0003);
    expect(h.run()).toEqual({ code: ExitCode.nestedPageFault, info1: 0x1_0000_0015n, info2: BigInt(CODE), rip: CODE });
    expect(h.get8(Control.BYTES_FETCHED)).toBe(0);
  });

  it("takes walks of guest page tables for writes", () => {
    const h = guest("long", HLT);
    const entry = h.nptEntry(0x3000);
    h.setEntry(entry, (h.bank.u32[entry >>> 2] as number) & ~2);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: 0x2_0000_0007n, info2: 0x3000n });
  });

  it("reports reserved bits, supervisor pages and entries that are not there", () => {
    const h = guest("long", [...touch, ...HLT]);
    const entry = h.nptEntry(0x30_0000);
    const low = h.bank.u32[entry >>> 2] as number;
    h.setEntry(entry, low & ~4);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: 0x1_0000_0005n });
    const large = h.nptEntry(0x20_0000, 1);
    const table = h.bank.u32[large >>> 2] as number;
    h.setEntry(large, ((h.guestMemory + 0x20_0000) | 0x2087) >>> 0);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info1: 0x1_0000_000dn });
    h.setEntry(large, ((h.guestMemory + 0x20_0000) | 0x87) >>> 0);
    expect(h.run().code).toBe(ExitCode.hlt);
    expect(table).not.toBe(0);
  });
});

describe("events", () => {
  it("injects interrupts, exceptions and software interrupts", () => {
    const h = guest("long", HLT);
    h.load(HLT, HANDLER);
    setGate(h, 0x40);
    setGate(h, 13);
    h.set32(Control.EVENT_INJECTION, 0x8000_0040);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect(h.get32(Control.EVENT_INJECTION) >>> 31).toBe(0);
    expect(h.guestU64(0x7000 - 40)).toBe(BigInt(CODE));
    h.set64(Save.RIP, CODE);
    h.set64(Save.RSP, 0x7000);
    h.set32(Control.EVENT_INJECTION, 0x8000_0b0d);
    h.set32(Control.EVENT_INJECTION + 4, 0x55);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect([h.guestU64(0x7000 - 48), h.guestU64(0x7000 - 40)]).toEqual([0x55n, BigInt(CODE)]);
    h.set64(Save.RIP, CODE);
    h.set64(Save.RSP, 0x7000);
    h.set32(Control.EVENT_INJECTION, 0x8000_0440);
    h.set64(Control.NEXT_RIP, CODE + 2);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect(h.guestU64(0x7000 - 40)).toBe(BigInt(CODE + 2));
  });

  it("tells in EXITINTINFO what an exit interrupted the delivery of", () => {
    const h = guest("long", HLT);
    setGate(h, 0x40);
    const entry = h.nptEntry(IDT);
    h.setEntry(entry, 0);
    h.set32(Control.EVENT_INJECTION, 0x8000_0040);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, info2: BigInt(IDT + 0x400), rip: CODE });
    expect(h.get64(Control.EXIT_INTERRUPT_INFO)).toBe(0x8000_0040n);
  });

  it("intercepts exceptions with error code and CR2, which keeps its value", () => {
    // mov eax, [0x40000000]: not mapped by the guest
    const h = guest("long", [0x8b, 0x04, 0x25, 0, 0, 0, 0x40]);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 14);
    h.set64(Save.CR2, 5);
    expect(h.run()).toEqual({ code: ExitCode.exception + 14, info1: 0n, info2: 0x4000_0000n, rip: CODE });
    expect([h.get8(Control.BYTES_FETCHED), h.get8(Control.INSTRUCTION_BYTES + 6)]).toEqual([15, 0x40]);
    expect(h.get64(Save.CR2)).toBe(5n);
  });

  it("takes virtual interrupts when flags, shadow and TPR let it", () => {
    // sti; nop; nop; then the handler
    const h = guest("long", [...NOP, ...STI, ...NOP, ...NOP, ...HLT]);
    h.load(CPUID, HANDLER);
    setGate(h, 0x51);
    h.set32(Control.V_INTERRUPT, (1 << 24) | (1 << 8) | (5 << 16));
    h.set32(Control.V_VECTOR, 0x51);
    expect(h.run()).toMatchObject({ code: ExitCode.cpuid, rip: HANDLER });
    expect(h.guestU64(0x7000 - 40)).toBe(BigInt(CODE + 3));
    expect(h.get32(Control.V_INTERRUPT) & 0x100).toBe(0);
  });

  it("exits with VINTR in its place where that is intercepted, and holds it back at the same priority", () => {
    const h = guest("long", [...NOP, ...STI, ...NOP, ...NOP, ...HLT]);
    h.setBits(Control.INTERCEPT_3, Intercept3.vintr);
    h.set32(Control.V_INTERRUPT, (1 << 24) | (1 << 8) | (5 << 16) | 5);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt });
    h.set64(Save.RIP, CODE);
    h.set64(Save.RFLAGS, 2);
    h.set32(Control.V_INTERRUPT, (1 << 24) | (1 << 8) | (5 << 16) | 4);
    expect(h.run()).toMatchObject({ code: ExitCode.vintr, rip: CODE + 3 });
    expect(h.get32(Control.V_INTERRUPT) & 0x100).toBe(0x100);
  });
});

describe("bitmaps", () => {
  it("lets accesses through whose bits are clear, and none whose range has one set", () => {
    // in al, 0x60; in ax, 0x60; hlt
    const h = guest("long", [0xe4, 0x60, 0x66, 0xe5, 0x60, ...HLT]);
    h.bank.u8[h.iopm + 0x60 / 8] = 0xfe;
    expect(h.run()).toMatchObject({ code: ExitCode.io, rip: CODE + 2 });
    h.bank.u8[h.iopm + 0x60 / 8] = 0xfc;
    expect(h.run().code).toBe(ExitCode.hlt);
  });

  it("has a bit for reads and one for writes of each MSR", () => {
    // mov ecx, 0xc0000082; rdmsr; wrmsr; hlt
    const h = guest("long", [0xb9, 0x82, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30, ...HLT]);
    const at = h.msrpm + 0x800 + Math.floor(0x82 / 4);
    expect(h.run()).toMatchObject({ code: ExitCode.msr, info1: 0n, rip: CODE + 5 });
    h.bank.u8[at] = 0xff & ~(1 << 4);
    expect(h.run()).toMatchObject({ code: ExitCode.msr, info1: 1n, rip: CODE + 7 });
    h.bank.u8[at] = 0xff & ~(3 << 4);
    expect(h.run().code).toBe(ExitCode.hlt);
  });
});

describe("SVM instructions of a guest", () => {
  it.each([
    ["VMRUN", 0xd8, Intercept4.vmrun, ExitCode.vmrun],
    ["VMLOAD", 0xda, Intercept4.vmload, ExitCode.vmload],
    ["VMSAVE", 0xdb, Intercept4.vmsave, ExitCode.vmsave],
    ["STGI", 0xdc, Intercept4.stgi, ExitCode.stgi],
    ["CLGI", 0xdd, Intercept4.clgi, ExitCode.clgi],
    ["SKINIT", 0xde, Intercept4.skinit, ExitCode.skinit],
  ])("%s exits where it is intercepted and is undefined elsewhere", (_name, opcode, intercept, code) => {
    const h = guest("long", [0x0f, 0x01, opcode]);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 6);
    if (intercept !== Intercept4.vmrun) expect(h.run().code).toBe(ExitCode.exception + 6);
    h.setBits(Control.INTERCEPT_4, intercept);
    expect(h.run()).toMatchObject({ code, rip: CODE });
    h.skip();
    expect(h.get64(Save.RIP)).toBe(BigInt(CODE + 3));
  });

  it("has those of VMX undefined", () => {
    const h = guest("long", [0x0f, 0x01, 0xc1]);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 6);
    expect(h.run().code).toBe(ExitCode.exception + 6);
  });
});

describe("fast system calls", () => {
  const SYSCALL = [0x0f, 0x05];

  it("enter by CSTAR from compatibility mode, and SYSENTER is undefined in long mode", () => {
    const h = guest("long", SYSCALL);
    h.load(HLT, HANDLER);
    h.setSegment(Save.CS, 0x10, 0xc9b, 0xffff_ffff);
    h.set64(Save.STAR, 0x0010_0000_0000n);
    h.set64(Save.CSTAR, HANDLER);
    h.set64(Save.SFMASK, 0x200);
    h.cpu.svm.vmload(h.vmcb);
    h.set64(Save.RFLAGS, 0x202);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect([h.cpu.gpr(1), h.cpu.gpr(11), h.get64(Save.RFLAGS)]).toEqual([BigInt(CODE + 2), 0x202n, 2n]);
    expect(h.get32(Save.CS)).toBe(0x0a9b_0010);
    h.load([0x0f, 0x34], 0xa000);
    h.set64(Save.RIP, 0xa000);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 6);
    expect(h.run().code).toBe(ExitCode.exception + 6);
  });

  it("enter by STAR outside long mode, and return with interrupts on", () => {
    const h = guest("real", SYSCALL);
    // sysret
    h.load([0x0f, 0x07], HANDLER);
    h.set64(Save.CR0, 0x11);
    h.set64(Save.EFER, 0x1001);
    h.setSegment(Save.CS, 0x10, 0xc9b, 0xffff_ffff);
    for (const segment of [Save.ES, Save.SS, Save.DS]) h.setSegment(segment, 0x18, 0xc93, 0xffff_ffff);
    h.set64(Save.STAR, (0x20n << 48n) | (0x10n << 32n) | BigInt(HANDLER));
    h.cpu.svm.vmload(h.vmcb);
    h.load(VMMCALL, CODE + 2);
    expect(h.run()).toMatchObject({ code: ExitCode.vmmcall, rip: CODE + 2 });
    expect([h.get8(Save.CPL), h.get32(Save.CS) & 0xffff, h.get64(Save.RFLAGS)]).toEqual([3, 0x23, 0x202n]);
  });
});

describe("numeric errors", () => {
  it("freeze the processor where CR0.NE is clear and that is intercepted", () => {
    // fldcw [0x300000]; fld1; fldz; fdivp; fwait
    const h = guest("long", [0xd9, 0x2c, 0x25, 0, 0, 0x30, 0, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b]);
    h.bank.view.setUint16(h.guestMemory + 0x30_0000, 0x300, true);
    h.setBits(Control.INTERCEPT_3, Intercept3.ferrFreeze);
    h.setBits(Control.INTERCEPT_EXCEPTIONS, 1 << 16);
    h.set64(Save.CR0, 0x8000_0011);
    expect(h.run()).toMatchObject({ code: ExitCode.ferrFreeze, rip: CODE + 13 });
    h.set64(Save.CR0, 0x8000_0031);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + 16, rip: CODE + 13 });
  });
});
