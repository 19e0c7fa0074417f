/** Debug exceptions: single steps, breakpoints on code, data and ports, general detect, and what they leave in DR6 and in the frame. */
import { bytes32, type CaseWriter, type SystemCase } from "./case-writer.ts";
import { CODE, PAGE, PAGE_DATA, STACK } from "./layout.ts";

const TF = 0x100;
const RF = 0x1_0000;
const DE = 8;
const DEBUGCTL = 0x1d9;
const BTF = 2;
const GENERAL_DETECT = 0x2000;
/** DR7 for breakpoint `n`, locally on: what it watches (0 code, 1 writes, 2 ports, 3 reads and writes) and of how many bytes. */
const enable = (n: number, kind: number, bytes = 1): number =>
  ((1 << (n * 2)) | (kind << (16 + n * 4)) | ({ 1: 0, 2: 1, 4: 3, 8: 2 }[bytes]! << (18 + n * 4)) | 0x400) >>> 0;

const stepped: Record<string, readonly number[]> = {
  nop: [0x90, 0x90],
  "mov ss": [0x8e, 0xd0, 0x90, 0x90],
  "mov ss, then mov ss": [0x8e, 0xd0, 0x8e, 0xd0, 0x90, 0x90],
  "mov ds": [0x8e, 0xd8, 0x90],
  jmp: [0xeb, 0x01, 0x90, 0x90],
  "jump not taken": [0x72, 0x01, 0x90, 0x90],
  call: [0xe8, 1, 0, 0, 0, 0x90, 0x90],
  "rep movsb": [0xf3, 0xa4, 0x90],
  "rep movsb of none": [0x31, 0xc9, 0xf3, 0xa4, 0x90],
  popf: [0x6a, 2, 0x9d, 0x90],
  pushf: [0x9c, 0x58, 0x90],
  "mov to cr0": [0x0f, 0x22, 0xc2, 0x90],
  int3: [0xcc, 0x90],
  "int 80h": [0xcd, 0x80],
  icebp: [0xf1, 0x90],
  ud2: [0x0f, 0x0b],
  cli: [0xfa, 0x90],
  "sti, then nop": [0xfb, 0x90, 0xfa],
  cpuid: [0x0f, 0xa2, 0x90],
  out: [0xe6, 0x80, 0x90],
  "mov to dr7": [0x0f, 0x23, 0xfd, 0x90],
  xchg: [0x87, 0x06, 0x90],
  "fault of a page": [0x8b, 0x03, 0x90],
};

function stepCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  for (const [name, action] of Object.entries(stepped))
    for (const ring of [0, 3] as const) {
      // Data of the page is the runtime's to see, where there is paging
      if (ring === 3 && ["rep movsb", "mov ss", "mov ss, then mov ss", "mov ds", "xchg"].includes(name) && bits === 64)
        continue;
      const selector = ring === 0 ? 0x10 : 0x23;
      cases.push({
        name: `step over ${name} at privilege ${ring}`,
        bits,
        ring,
        flags: TF | (ring === 3 ? 0x3000 : 0),
        paging: bits === 32 ? { mode: "twoLevel" } : { mode: "long" },
        registers: {
          // Leaf 3 of CPUID is nothing on any processor of today
          eax: name === "cpuid" ? 3 : selector,
          ecx: 2,
          edx: bits === 64 ? 0x8000_0011 : 0x8000_0011,
          ebx: 0x7100_0000,
          ebp: 0x400,
          esi: STACK[3] - 0x100,
          edi: STACK[3] - 0x80,
        },
        action,
      });
    }
  // TF that is set by POPF, IRET: the instruction behind is stepped over
  cases.push({
    name: "POPF sets TF",
    bits,
    action: [0x68, ...bytes32(TF | 2), 0x9d, 0x90, 0x90],
  });
  cases.push({
    name: "POPF sets TF, MOV SS behind",
    bits,
    registers: { eax: 0x10 },
    action: [0x68, ...bytes32(TF | 2), 0x9d, 0x8e, 0xd0, 0x90, 0x90],
  });
  return cases;
}

/** Single steps on branches: IA32_DEBUGCTL.BTF. What is stepped over begins with a branch that is taken, or does not. */
function branchStepCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  const kinds: Record<string, readonly number[]> = {
    jmp: [0xeb, 0x01, 0x90, 0x90],
    "jump taken": [0x73, 0x01, 0x90, 0x90],
    call: [0xe8, 1, 0, 0, 0, 0x90, 0x90],
    loop: [0xe2, 0x01, 0x90, 0x90],
    int3: [0xcc, 0x90],
    ud2: [0x0f, 0x0b],
    "nop, then jmp": [0x90, 0xeb, 0x01, 0x90, 0x90],
    "jump not taken": [0x72, 0x01, 0x90, 0x90],
    "rep movsb, then jmp": [0xf3, 0xa4, 0xeb, 0x00, 0x90],
    "nothing but nop": [0x90, 0x90],
  };
  for (const [name, action] of Object.entries(kinds))
    cases.push({
      name: `step on branches over ${name}`,
      bits,
      flags: TF,
      registers: { ecx: 2, esi: STACK[3] - 0x100, edi: STACK[3] - 0x80 },
      setup: (m) => void m.writeMsr(DEBUGCTL, BTF),
      action,
    });
  return cases;
}

function codeBreakpointCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  const kinds: Record<string, readonly number[]> = {
    nop: [0x90, 0x90],
    "mov ss before": [0x8e, 0xd0, 0x90],
    ud2: [0x90, 0x0f, 0x0b],
    "load that faults": [0x90, 0x8b, 0x03],
    "rep movsb": [0x90, 0xf3, 0xa4],
    int3: [0x90, 0xcc],
  };
  for (const [name, action] of Object.entries(kinds))
    for (const at of [0, 1, 2])
      for (const flags of [0, RF, TF, TF | RF])
        for (const ring of [0, 3] as const) {
          if (ring === 3 && bits === 64 && (name === "mov ss before" || name === "rep movsb")) continue;
          cases.push({
            name: `code breakpoint at byte ${at} of ${name}, flags ${flags.toString(16)}, privilege ${ring}`,
            bits,
            ring,
            flags,
            paging: bits === 32 ? { mode: "twoLevel" } : { mode: "long" },
            registers: { eax: ring === 0 ? 0x10 : 0x23, ecx: 2, ebx: 0x7100_0000, esi: STACK[3] - 0x100, edi: STACK[3] - 0x80 },
            setup: (m) => {
              m.loadLabel("eax", m.begin).bytes(0x05, ...bytes32(at));
              if (ring === 3) m.bytes(0x2d, 0, 0, 0, 0x80); // as privilege 3 sees the ROM
              // Flags are loaded after it is on, and RF is what POPF cannot set
              m.bytes(0x0f, 0x23, 0xc0).writeDr(7, enable(0, 0));
            },
            action: flags & RF && ring === 0 ? withResumeFlag(bits, flags, action) : action,
            isLong: cases.length % 3 !== 0,
          });
        }
  return cases;
}

/** The action entered by IRET, the way to set RF. */
function withResumeFlag(bits: 32 | 64, flags: number, action: readonly number[]): SystemCase["action"] {
  return (m: CaseWriter) => {
    // Where to: behind the IRET, so the breakpoint is at that instead
    const target = m.label();
    m.loadLabel("edx", target).bytes(0x0f, 0x23, 0xc2); // mov dr0, edx
    if (bits === 64) m.bytes(0x6a, 0x10, 0x68, ...bytes32(STACK[0]));
    m.bytes(0x68, ...bytes32(flags | 2), 0x6a, bits === 64 ? 0x28 : CODE[0], 0x52); // push flags, cs, edx
    if (bits === 64) m.bytes(0x48);
    m.bytes(0xcf)
      .place(target)
      .bytes(...action);
  };
}

function dataBreakpointCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  const base = PAGE + PAGE_DATA;
  const kinds: Record<string, readonly number[]> = {
    "read 4": [0x8b, 0x03],
    "write 4": [0x89, 0x03],
    "write 1": [0x88, 0x03],
    "write 2": [0x66, 0x89, 0x03],
    modify: [0x83, 0x03, 1],
    "locked modify": [0xf0, 0x83, 0x03, 1],
    "read 8": [0xdd, 0x03],
    "read 16": [0x0f, 0x10, 0x03],
    "compare and exchange, equal": [0x0f, 0xb1, 0x0b],
    push: [0xff, 0x33],
    "cmps, string": [0x89, 0xde, 0x89, 0xdf, 0xa6],
    "rep stosb": [0x89, 0xdf, 0xb9, 8, 0, 0, 0, 0xf3, 0xaa],
    "rep movsb": [0x89, 0xde, 0xbf, ...bytes32(base + 0x10), 0xb9, 8, 0, 0, 0, 0xf3, 0xa4],
    bt: [0x0f, 0xba, 0x23, 0x0a],
    call: [0xff, 0x53, 0x20],
  };
  for (const [name, action] of Object.entries(kinds))
    for (const kind of [1, 3])
      for (const bytes of bits === 64 ? [1, 2, 4, 8] : [1, 2, 4])
        for (const offset of [-4, -1, 0, 1, 2, 3, 4, 8]) {
          if (name === "call") continue;
          cases.push({
            name: `data breakpoint ${kind === 1 ? "on writes" : "on both"} of ${bytes} at ${offset}: ${name}`,
            bits,
            registers: { ebx: base, eax: 0 },
            setup: (m) =>
              void m
                .writeCr(4, bits === 64 ? 0x620 : 0x600)
                .writeDr(1, base + offset)
                .writeDr(7, enable(1, kind, bytes)),
            action: [...action, 0x90],
            isLong: cases.length % 7 !== 0,
          });
        }
  // Several at once; ones that are off leave their bits as well
  for (const dr7 of [enable(0, 1, 4) | enable(1, 3, 4), enable(1, 3, 4), enable(0, 1, 4) | enable(2, 3, 1) | enable(3, 1, 2)])
    for (const flags of [0, TF])
      cases.push({
        name: `data breakpoints, DR7 ${dr7.toString(16)}, flags ${flags}`,
        bits,
        flags,
        registers: { ebx: base },
        setup: (m) => {
          for (const n of [0, 1, 2, 3]) m.writeDr(n, base);
          m.writeDr(7, dr7 >>> 0);
        },
        action: [0x89, 0x03, 0x90, 0x90],
      });
  cases.push({
    name: "data breakpoint on a store behind MOV SS",
    bits,
    registers: { ebx: base, eax: 0x10 },
    setup: (m) => void m.writeDr(0, base).writeDr(7, enable(0, 1, 4)),
    action: [0x8e, 0xd0, 0x89, 0x03, 0x90],
  });
  cases.push({
    name: "data breakpoint on what MOV SS loads",
    bits,
    registers: { ebx: base },
    setup: (m) =>
      void m
        .poke(base, 0x10)
        .writeDr(0, base)
        .writeDr(7, enable(0, 3, 4)),
    action: [0x8e, 0x13, 0x90, 0x90],
  });
  return cases;
}

function portBreakpointCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  for (const de of [0, DE])
    for (const port of [0x80, 0x81, 0x7f])
      for (const [name, action] of Object.entries({ "out imm8": [0xe6, 0x80], "in dx": [0xec], "out dx, eax": [0xef] }))
        cases.push({
          name: `port breakpoint at ${port.toString(16)}, DE ${de !== 0}: ${name}`,
          bits,
          registers: { edx: 0x80, eax: 0 },
          setup: (m) =>
            void m
              .writeCr(4, de | (bits === 64 ? 0x20 : 0))
              .writeDr(0, port)
              .writeDr(7, enable(0, 2)),
          action: [...action, 0xb0, 0, 0x90],
        });
  return cases;
}

function registerCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  const add = (name: string, action: SystemCase["action"], options: Partial<SystemCase> = {}): void =>
    void cases.push({ name, bits, action, ...options });
  for (const dr of [0, 3, 4, 5, 6, 7])
    for (const ring of [0, 3] as const)
      for (const cr4 of [0, DE])
        for (const [way, opcode] of [
          ["from", 0x21],
          ["to", 0x23],
        ] as const) {
          const setup = (m: CaseWriter): void => void m.writeCr(4, cr4 | (bits === 64 ? 0x20 : 0));
          add(`mov ${way} DR${dr} at privilege ${ring}, DE ${cr4 !== 0}`, [0x0f, opcode, 0xc0 | (dr << 3)], { ring, setup });
          if (ring === 0)
            add(`mov ${way} DR${dr}, general detect, DE ${cr4 !== 0}`, [0x0f, opcode, 0xc0 | (dr << 3)], {
              setup: (m) => {
                setup(m);
                m.writeDr(7, GENERAL_DETECT | 0x400);
              },
            });
        }
  for (const value of [0, 0xffff_ffff, 0xffff_0ff0, 0xf, 0xe00f, 0x1000, 0x1_0000])
    for (const dr of [6, 7])
      add(
        `DR${dr} of ${value.toString(16)} reads`,
        [0x0f, 0x23, 0xc0 | (dr << 3), 0x0f, 0x21, 0xc2 | (dr << 3), 0x31, 0xc0, 0x0f, 0x23, 0xf8],
        {
          registers: { eax: dr === 7 ? value & ~0x2000 : value },
        },
      );
  if (bits === 64)
    for (const dr of [0, 6, 7])
      add(`DR${dr} with bits above 31`, [0x0f, 0x23, 0xc0 | (dr << 3), 0x0f, 0x21, 0xc2 | (dr << 3)], {
        registers: { eax: 0x1_0000_0400n },
      });
  // DR6 keeps what software does not clear
  add("DR6 before a step", (m) => void m.bytes(0x68, ...bytes32(TF | 2), 0x9d, 0x90, 0x90), {
    setup: (m) => void m.writeDr(6, 0xffff_6ff7),
  });
  return cases;
}

export const debugCases: readonly SystemCase[] = ([32, 64] as const).flatMap((bits) => [
  ...stepCases(bits),
  ...branchStepCases(bits),
  ...codeBreakpointCases(bits),
  ...dataBreakpointCases(bits),
  ...portBreakpointCases(bits),
  ...registerCases(bits),
]);
