/**
 * Every bit of the intercept words of the VMCB, one row each: with it set, and no other, a guest exits with its code; without it the
 * same guest comes to its HLT, or faults as it would without SVM. What this machine has nothing to raise with is named, with the reason.
 */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { Control, Event, ExitCode, Intercept3, Intercept4, Intercept5, Save } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { CODE, SvmHarness } from "./svm-harness.ts";

const HLT = 0xf4;
const NOP = 0x90;
const IDT = 0x6000;
const GDT = 0x5000;
const HANDLER = 0x9000;
const DATA = 0x30_0000;
const DEVICE = 0x3f;
const BASE_3 = (Intercept3.hlt | Intercept3.shutdown) >>> 0;
const BASE_4 = Intercept4.vmrun;

type Mode = "long" | "protected";
/** How a bit's exit comes about. */
interface Scenario {
  readonly code: readonly number[];
  readonly mode?: Mode;
  readonly prepare?: (h: SvmHarness) => void;
  /** Without the intercept the guest ends with this code; HLT unless told. */
  readonly otherwise?: number;
}
/** Why nothing here raises it. */
type Absent = string;

const at = (opcode: readonly number[], reg = 0): number[] => [...opcode, 0x04 | (reg << 3), 0x25, 0, 0, 0x30, 0];
const ax = (selector: number): number[] => [0x66, 0xb8, selector, 0];

function guest(scenario: Scenario): SvmHarness {
  const h = new SvmHarness({
    mode: scenario.mode === "protected" ? "real" : "long",
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load([...scenario.code, HLT]);
  h.load([HLT], HANDLER);
  const descriptor = (selector: number, value: bigint): void =>
    h.bank.view.setBigUint64(h.guestMemory + GDT + selector, value, true);
  descriptor(0x10, scenario.mode === "protected" ? 0x00cf_9b00_0000_ffffn : 0x00af_9b00_0000_ffffn);
  descriptor(0x18, 0x00cf_9300_0000_ffffn);
  // A TSS, an LDT, a data segment that is not present, and one of a single byte
  descriptor(0x20, 0x0000_8900_4000_0067n);
  descriptor(0x30, 0x0000_8200_4000_0067n);
  descriptor(0x40, 0x00cf_1300_0000_ffffn);
  descriptor(0x48, 0x0040_9300_0000_0000n);
  h.setSegment(Save.GDTR, 0, 0, 0x4f, GDT);
  h.setSegment(Save.IDTR, 0, 0, 0xfff, IDT);
  const size = scenario.mode === "protected" ? 8 : 16;
  for (let vector = 0; vector < 0x60; vector++) {
    const gate = (h.guestMemory + IDT + vector * size) >>> 2;
    h.bank.u32[gate] = (0x10 << 16) | HANDLER;
    h.bank.u32[gate + 1] = 0x8e00;
  }
  if (scenario.mode === "protected") {
    h.set64(Save.CR0, 0x31);
    h.setSegment(Save.CS, 0x10, 0xc9b, 0xffff_ffff);
    for (const segment of [Save.ES, Save.SS, Save.DS]) h.setSegment(segment, 0x18, 0xc93, 0xffff_ffff);
  }
  h.bank.u32[(h.guestMemory + DATA) >>> 2] = 0xffff;
  h.set32(Control.INTERCEPT_3, BASE_3);
  h.set32(Control.INTERCEPT_4, BASE_4);
  scenario.prepare?.(h);
  return h;
}

const noSuchRegister = (name: string): Absent => `${name} does not exist: #UD comes before the intercept`;
const clearDescriptor = (h: SvmHarness): void => {
  h.bank.u32[(h.guestMemory + DATA) >>> 2] = 0;
};
const DB_STEP = (h: SvmHarness): void => h.set64(Save.RFLAGS, 0x102);
const cpl3 = (h: SvmHarness): void => {
  h.setSegment(Save.CS, 0x13, 0xafb, 0xffff_ffff);
  h.setSegment(Save.SS, 0x1b, 0xcf3, 0xffff_ffff);
  h.set8(Save.CPL, 3);
};

function moveCr(cr: number, isWrite: boolean): Scenario | Absent {
  if (![0, 2, 3, 4, 8].includes(cr)) return noSuchRegister(`CR${cr}`);
  const prefix = cr === 8 ? [0x44] : [];
  const read = [...prefix, 0x0f, 0x20, 0xc1 | ((cr & 7) << 3)];
  return { code: isWrite ? [...read, ...prefix, 0x0f, 0x22, 0xc1 | ((cr & 7) << 3)] : read };
}
function moveDr(dr: number, isWrite: boolean): Scenario | Absent {
  if (dr > 7) return noSuchRegister(`DR${dr}`);
  const read = [0x0f, 0x21, 0xc1 | (dr << 3)];
  // Of the value that is there already: DR7 keeps its fixed bit
  return { code: isWrite ? [...read, 0x0f, 0x23, 0xc1 | (dr << 3)] : read };
}

const exceptions: Readonly<Record<number, Scenario | Absent>> = {
  0: { code: [0x31, 0xc9, 0xf7, 0xf1] },
  1: { code: [NOP], prepare: DB_STEP },
  2: "bit 2 is not used: NMIs have an intercept of their own",
  3: { code: [0xcc] },
  // into, with OF set: push 0x802; popf
  4: { mode: "protected", code: [0x68, 2, 8, 0, 0, 0x9d, 0xce] },
  // bound eax, [DATA]: 0xffff to 0 holds no number
  5: { mode: "protected", code: [0x62, 0x05, 0, 0, 0x30, 0] },
  6: { code: [0x0f, 0x0b] },
  7: { code: [0xd9, 0xe8], prepare: (h) => h.set64(Save.CR0, 0x8000_0039) },
  // A #GP whose gate is beyond the IDT: #DF
  8: { code: [...ax(0x78), 0x8e, 0xd8], prepare: (h) => h.setSegment(Save.IDTR, 0, 0, 0x8f, IDT) },
  9: "coprocessor segment overrun is of processors before the 486",
  // iret of a nested task whose link is no TSS: its TSS says 0x18
  10: {
    mode: "protected",
    code: [0xcf],
    prepare: (h) => {
      h.setSegment(Save.TR, 0x20, 0x8b, 0x67, 0x4000);
      h.cpu.svm.vmload(h.vmcb);
      h.set64(Save.RFLAGS, 0x4002);
      h.bank.u32[(h.guestMemory + 0x4000) >>> 2] = 0x18;
    },
  },
  11: { code: [...ax(0x40), 0x8e, 0xd8] },
  // mov rsp, 1 << 63; push rax
  12: { code: [0x48, 0xbc, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x50], otherwise: ExitCode.shutdown },
  13: { code: [...ax(0x78), 0x8e, 0xd8] },
  14: { code: [0x8b, 0x04, 0x25, 0, 0, 0, 0x40] },
  15: "vector 15 is reserved",
  // fldcw [DATA]; fld1; fldz; fdivp; fwait, with the mask of zero divide off
  16: {
    code: [...[0xd9, 0x2c, 0x25, 0, 0, 0x30, 0], 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b],
    prepare: (h) => h.bank.view.setUint16(h.guestMemory + DATA, 0x300, true),
  },
  // mov eax, [DATA + 1] at CPL 3 with AC and AM
  17: {
    code: [0x8b, 0x04, 0x25, 1, 0, 0x30, 0],
    prepare: (h) => {
      cpl3(h);
      h.set64(Save.CR0, 0x8004_0031);
      h.set64(Save.RFLAGS, 0x4_0002);
    },
    otherwise: ExitCode.shutdown,
  },
  18: "no machine checks happen here",
  // ldmxcsr [DATA]; xorps xmm0, xmm0; divps xmm0, xmm0
  19: {
    code: [...at([0x0f, 0xae], 2), 0x0f, 0x57, 0xc0, 0x0f, 0x5e, 0xc0],
    prepare: (h) => {
      h.set64(Save.CR4, 0x620);
      h.bank.u32[(h.guestMemory + DATA) >>> 2] = 0x1f00;
    },
  },
  20: "vector 20 is reserved here",
  21: "there are no shadow stacks",
  28: "#HV is of SEV-SNP guests",
  29: "#VC is of SEV-ES guests",
  30: "#SX is redirected INIT, of which there is none",
};

const word3: Readonly<Record<keyof typeof Intercept3, Scenario | Absent>> = {
  intr: {
    code: [NOP],
    prepare: (h) => {
      h.cpu.sendIpi(0);
      h.set64(Save.RFLAGS, 0x202);
      const gate = (h.guestMemory + IDT + 0xfd * 16) >>> 2;
      h.bank.u32[gate] = (0x10 << 16) | HANDLER;
      h.bank.u32[gate + 1] = 0x8e00;
    },
  },
  nmi: "this machine has no line for NMIs",
  smi: "this machine has no line for SMIs",
  init: "this machine has no line for INIT",
  vintr: {
    code: [NOP],
    prepare: (h) => {
      h.set64(Save.RFLAGS, 0x202);
      h.set32(Control.V_VECTOR, 0x50);
      h.set32(Control.V_INTERRUPT, (1 << 24) | (1 << 20) | (1 << 8));
    },
  },
  // mov rax, cr0; xor al, 4; mov cr0, rax
  cr0Selective: { code: [0x0f, 0x20, 0xc0, 0x34, 4, 0x0f, 0x22, 0xc0] },
  idtrRead: { code: at([0x0f, 0x01], 1) },
  gdtrRead: { code: at([0x0f, 0x01], 0) },
  ldtrRead: { code: [0x0f, 0x00, 0xc0] },
  trRead: { code: [0x0f, 0x00, 0xc8] },
  idtrWrite: { code: at([0x0f, 0x01], 3) },
  gdtrWrite: { code: at([0x0f, 0x01], 2) },
  ldtrWrite: { code: [...ax(0x30), 0x0f, 0x00, 0xd0] },
  trWrite: { code: [...ax(0x20), 0x0f, 0x00, 0xd8] },
  rdtsc: { code: [0x0f, 0x31] },
  rdpmc: { code: [0x0f, 0x33] },
  pushf: { code: [0x9c] },
  popf: { code: [0x6a, 2, 0x9d] },
  cpuid: { code: [0x0f, 0xa2] },
  rsm: { code: [0x0f, 0xaa] },
  // push ss, rsp, flags, cs, rip as they are; iretq
  iret: { code: [0x6a, 0x18, 0x68, 0, 0x70, 0, 0, 0x6a, 2, 0x6a, 0x10, 0x68, 0, 0x90, 0, 0, 0x48, 0xcf] },
  softwareInterrupt: { code: [0xcd, 0x50] },
  invd: { code: [0x0f, 0x08] },
  pause: { code: [0xf3, NOP] },
  hlt: { code: [] },
  invlpg: { code: at([0x0f, 0x01], 7) },
  invlpga: { code: [0x0f, 0x01, 0xdf] },
  io: { code: [0xe6, 0x80] },
  // rdmsr of EFER
  msr: { code: [0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32] },
  // jmp far to a TSS, which as it is all zeroes ends in the handler of a fault
  taskSwitch: { mode: "protected", code: [0xea, 0, 0, 0, 0, 0x20, 0] },
  ferrFreeze: {
    code: [...[0xd9, 0x2c, 0x25, 0, 0, 0x30, 0], 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b],
    prepare: (h) => {
      h.bank.view.setUint16(h.guestMemory + DATA, 0x300, true);
      h.set64(Save.CR0, 0x8000_0011);
    },
  },
  shutdown: { code: [0x0f, 0x0b], prepare: (h) => h.setSegment(Save.IDTR, 0, 0, 0) },
};

const word4: Readonly<Record<Exclude<keyof typeof Intercept4, "crWriteTraps">, Scenario | Absent>> = {
  vmrun: { code: [0x0f, 0x01, 0xd8] },
  vmmcall: { code: [0x0f, 0x01, 0xd9] },
  vmload: { code: [0x0f, 0x01, 0xda] },
  vmsave: { code: [0x0f, 0x01, 0xdb] },
  stgi: { code: [0x0f, 0x01, 0xdc] },
  clgi: { code: [0x0f, 0x01, 0xdd] },
  skinit: { code: [0x0f, 0x01, 0xde] },
  rdtscp: { code: [0x0f, 0x01, 0xf9] },
  icebp: { code: [0xf1] },
  wbinvd: { code: [0x0f, 0x09] },
  monitor: { code: [0x31, 0xc9, 0x31, 0xd2, 0xb8, 0, 0, 0x30, 0, 0x0f, 0x01, 0xc8] },
  mwait: { code: [0x31, 0xc9, 0x31, 0xc0, 0x0f, 0x01, 0xc9] },
  mwaitArmed: { code: [0x31, 0xc9, 0x31, 0xc0, 0x0f, 0x01, 0xc9] },
  // mov eax, 3; xor ecx, ecx; xor edx, edx
  xsetbv: {
    code: [0xb8, 3, 0, 0, 0, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xd1],
    prepare: (h) => h.set64(Save.CR4, 0x4_0020),
  },
  rdpru: "CPUID offers no RDPRU, and no such instruction is decoded",
  eferWriteTrap: { code: [0xb9, 0x80, 0, 0, 0xc0, 0xb8, 0, 0x1d, 0, 0, 0x31, 0xd2, 0x0f, 0x30] },
};

function crWriteTrap(cr: number): Scenario | Absent {
  return cr === 2 ? "writes of CR2 are no trap: nothing depends on it" : moveCr(cr, true);
}

interface Row {
  readonly name: string;
  readonly field: number;
  readonly bit: number;
  readonly exit: number;
  readonly how: Scenario | Absent;
}
const bitOf = (value: number): number => 31 - Math.clz32(value);
const rows: Row[] = [];
for (let n = 0; n < 16; n++) {
  rows.push({ name: `read CR${n}`, field: Control.INTERCEPT_CR, bit: n, exit: ExitCode.readCr + n, how: moveCr(n, false) });
  rows.push({
    name: `write CR${n}`,
    field: Control.INTERCEPT_CR,
    bit: 16 + n,
    exit: ExitCode.writeCr + n,
    how: moveCr(n, true),
  });
  rows.push({ name: `read DR${n}`, field: Control.INTERCEPT_DR, bit: n, exit: ExitCode.readDr + n, how: moveDr(n, false) });
  rows.push({
    name: `write DR${n}`,
    field: Control.INTERCEPT_DR,
    bit: 16 + n,
    exit: ExitCode.writeDr + n,
    how: moveDr(n, true),
  });
  const trap = { field: Control.INTERCEPT_4, bit: 16 + n, exit: ExitCode.crWriteTrap + n };
  rows.push({ name: `trap behind a write of CR${n}`, ...trap, how: crWriteTrap(n) });
}
for (let vector = 0; vector < 32; vector++) {
  const how = exceptions[vector] ?? `vector ${vector} is reserved`;
  const exit = ExitCode.exception + vector;
  rows.push({ name: `exception ${vector}`, field: Control.INTERCEPT_EXCEPTIONS, bit: vector, exit, how });
}
for (const [name, how] of Object.entries(word3)) {
  const bit = bitOf(Intercept3[name as keyof typeof Intercept3]);
  rows.push({ name, field: Control.INTERCEPT_3, bit, exit: ExitCode.intr + bit, how });
}
for (const [name, how] of Object.entries(word4)) {
  const bit = bitOf(Intercept4[name as keyof typeof Intercept4]);
  rows.push({ name, field: Control.INTERCEPT_4, bit, exit: ExitCode.vmrun + bit, how });
}
const isAbsent = (row: Row): boolean => typeof row.how === "string";

/** Intercepts that stay on while the others are tried: the ends of a guest, and what VMRUN demands. */
function always(row: Row): number {
  return row.field === Control.INTERCEPT_3 ? BASE_3 : row.field === Control.INTERCEPT_4 ? BASE_4 : 0;
}

describe("intercept words", () => {
  it("have a row for every bit", () => {
    for (const field of [
      Control.INTERCEPT_CR,
      Control.INTERCEPT_DR,
      Control.INTERCEPT_EXCEPTIONS,
      Control.INTERCEPT_3,
      Control.INTERCEPT_4,
    ]) {
      const bits = rows.filter((row) => row.field === field).map(({ bit }) => bit);
      expect(bits.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 32 }, (_, bit) => bit));
    }
  });

  it.each(rows.filter((row) => !isAbsent(row)))("$name", (row) => {
    const scenario = row.how as Scenario;
    const h = guest(scenario);
    h.set32(row.field, (h.get32(row.field) | (1 << row.bit)) >>> 0);
    expect(h.run().code, h.log.join()).toBe(row.exit);
    if ((always(row) & (1 << row.bit)) !== 0) return;
    const plain = guest(scenario);
    expect(plain.run().code, plain.log.join()).toBe(scenario.otherwise ?? ExitCode.hlt);
  });

  it("of the fifth word are INVPCID's and of instructions that this machine has not: INVLPGB, MCOMMIT, TLBSYNC", () => {
    const invpcid = { code: at([0x66, 0x0f, 0x38, 0x82]), prepare: clearDescriptor };
    for (let bit = 0; bit < 32; bit++) {
      const h = guest(invpcid);
      h.set32(Control.INTERCEPT_5, (1 << bit) >>> 0);
      expect(h.run().code).toBe(Intercept5.invpcid === 1 << bit ? ExitCode.invpcid : ExitCode.hlt);
    }
    for (const code of [
      [0x0f, 0x01, 0xfe],
      [0xf3, 0x0f, 0x01, 0xfa],
      [0x0f, 0x01, 0xff],
    ]) {
      const h = guest({ code });
      h.set32(Control.INTERCEPT_5, 0xffff_ffff);
      h.set32(Control.INTERCEPT_EXCEPTIONS, 1 << 6);
      expect(h.run()).toMatchObject({ code: ExitCode.exception + 6, rip: CODE });
    }
  });

  it("do no harm with what this machine has nothing to raise with", () => {
    const h = guest({ code: [NOP] });
    const absent = rows.filter(isAbsent);
    expect(absent.map(({ name, how }) => `${name}: ${how}`)).toHaveLength(70);
    for (const { field, bit } of absent) h.set32(field, (h.get32(field) | (1 << bit)) >>> 0);
    expect(h.run().code).toBe(ExitCode.hlt);
  });
});

describe("event injection", () => {
  it.each([
    ["an interrupt", Event.interrupt, 0x50, false, 0],
    ["an NMI, whatever its vector", Event.nmi, 0x33, false, 0],
    ["an exception with an error code", Event.exception, 13, true, 0],
    ["an exception without one", Event.exception, 0, false, 0],
    ["#BP, which returns behind the instruction", Event.exception, 3, false, 1],
    ["#OF, which does too", Event.exception, 4, false, 1],
    ["a software interrupt, which does too", Event.software, 0x50, false, 2],
  ] as const)("delivers %s", (_name, type, vector, hasError, length) => {
    const h = guest({ code: [NOP] });
    // Each gate its own handler, and interrupts off: nothing here waits for RFLAGS.IF
    const taken = type === Event.nmi ? 2 : vector;
    h.bank.u32[(h.guestMemory + IDT + taken * 16) >>> 2] = (0x10 << 16) | (HANDLER + 0x100);
    h.load([HLT], HANDLER + 0x100);
    // What is intercepted does not exit when it is injected
    h.set32(Control.INTERCEPT_EXCEPTIONS, 0xffff_ffff);
    h.setBits(Control.INTERCEPT_3, Intercept3.softwareInterrupt | Intercept3.nmi | Intercept3.intr);
    h.set32(
      Control.EVENT_INJECTION,
      (vector | (type << Event.typeShift) | (hasError ? Event.errorValid : 0) | Event.valid) >>> 0,
    );
    h.set32(Control.EVENT_INJECTION + 4, 0x1234);
    h.set64(Control.NEXT_RIP, CODE + length);
    expect(h.run(), h.log.join()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER + 0x100 });
    expect(h.get32(Control.EVENT_INJECTION) & Event.valid).toBe(0);
    const frame = Number(h.get64(Save.RSP));
    if (hasError) expect(h.guestU64(frame)).toBe(0x1234n);
    expect(h.guestU64(hasError ? frame + 8 : frame)).toBe(BigInt(CODE + length));
    expect(h.get64(Control.EXIT_INTERRUPT_INFO)).toBe(0n);
  });

  it.each([
    ["an interrupt", Event.interrupt, 0x50, undefined],
    ["an NMI", Event.nmi, 2, undefined],
    ["an exception", Event.exception, 13, 0x18],
    ["a software interrupt", Event.software, 0x50, undefined],
  ] as const)("that a nested page fault cuts short is told of: %s", (_name, type, vector, error) => {
    const h = guest({ code: [NOP] });
    const info = (vector | (type << Event.typeShift) | (error === undefined ? 0 : Event.errorValid) | Event.valid) >>> 0;
    h.set32(Control.EVENT_INJECTION, info);
    h.set32(Control.EVENT_INJECTION + 4, error ?? 0);
    h.set64(Control.NEXT_RIP, CODE + 2);
    h.setEntry(h.nptEntry(IDT), 0);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault, rip: CODE });
    expect(h.get64(Control.EXIT_INTERRUPT_INFO)).toBe(BigInt(info) | (BigInt(error ?? 0) << 32n));
  });

  it("whose delivery faults tells the event behind the fault that exits", () => {
    // The stack is not there: the interrupt's delivery is a #PF, intercepted
    const h = guest({ code: [NOP] });
    h.set64(Save.RSP, 0x4000_1000);
    h.set32(Control.INTERCEPT_EXCEPTIONS, 1 << 14);
    h.set32(Control.EVENT_INJECTION, 0x8000_0050);
    expect(h.run()).toMatchObject({ code: ExitCode.exception + 14, rip: CODE });
    expect(h.get64(Control.EXIT_INTERRUPT_INFO)).toBe(0x8000_0050n);
    // A fault of the guest's own leads to another: EXITINTINFO has the first
    const own = guest({ code: [0x0f, 0x0b] });
    own.set64(Save.RSP, 0x4000_1000);
    own.set32(Control.INTERCEPT_EXCEPTIONS, 1 << 14);
    expect(own.run()).toMatchObject({ code: ExitCode.exception + 14, rip: CODE });
    expect(own.get64(Control.EXIT_INTERRUPT_INFO)).toBe(0x8000_0306n);
  });
});

describe("virtual interrupts", () => {
  const pending = (priority: number, tpr: number, more = 0): number => (1 << 24) | (1 << 8) | (priority << 16) | tpr | more;
  it.each([
    ["of a higher priority than V_TPR is taken", pending(6, 5), true],
    ["of the same is not", pending(5, 5), false],
    ["of a lower one is not", pending(4, 5), false],
    ["with V_IGN_TPR is taken whatever they are", pending(0, 15, 1 << 20), true],
    ["without V_IRQ is none", pending(15, 0) & ~(1 << 8), false],
  ] as const)("one %s", (_name, word, isTaken) => {
    const h = guest({ code: [NOP] });
    h.set64(Save.RFLAGS, 0x202);
    h.set32(Control.V_VECTOR, 0x50);
    h.set32(Control.V_INTERRUPT, word);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: isTaken ? HANDLER : CODE + 1 });
    expect(h.get32(Control.V_INTERRUPT)).toBe(isTaken ? word & ~(1 << 8) : word);
  });

  it("follow CR8, which is V_TPR", () => {
    // mov eax, 4; mov cr8, rax; nop
    const h = guest({ code: [0xb8, 4, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0, NOP] });
    h.set64(Save.RFLAGS, 0x202);
    h.set32(Control.V_VECTOR, 0x50);
    h.set32(Control.V_INTERRUPT, pending(5, 9));
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: HANDLER });
    expect(h.guestU64(0x7000 - 40)).toBe(BigInt(CODE + 9));
    expect(h.get32(Control.V_INTERRUPT) & DEVICE).toBe(4);
  });
});
