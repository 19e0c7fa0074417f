/** Exceptions of single instructions, the order of checks where two could fault, and privileged instructions at every privilege. */
import { bytes32, type CaseWriter, type SystemCase } from "./case-writer.ts";
import { descriptor, GDT, IO_BITMAP, PAGE, Selector, STACK } from "./layout.ts";

const AC = 0x4_0000;
const CR0 = { MP: 2, EM: 4, TS: 8, NE: 0x20, WP: 0x1_0000, AM: 0x4_0000 } as const;
const CR4 = { VME: 1, PVI: 2, TSD: 4, OSFXSR: 0x200, PCE: 0x100, UMIP: 0x800, OSXSAVE: 0x4_0000 } as const;

type Options = Partial<Omit<SystemCase, "name" | "bits" | "action">>;
const cases: SystemCase[] = [];
const add = (bits: 32 | 64, name: string, action: SystemCase["action"], options: Options = {}): void =>
  void cases.push({ name, bits, action, ...options });
const both = (name: string, action: SystemCase["action"], options: Options = {}): void => {
  add(32, name, action, options);
  add(64, name, action, options);
};

/** Instructions that privilege, or flags, guard. */
const guarded: Record<string, readonly number[]> = {
  cli: [0xfa],
  sti: [0xfb],
  hlt: [0xf4],
  clts: [0x0f, 0x06],
  invd: [0x0f, 0x08],
  wbinvd: [0x0f, 0x09],
  "lmsw eax": [0x0f, 0x01, 0xf0],
  "smsw eax": [0x0f, 0x01, 0xe0],
  "sgdt [ebx]": [0x0f, 0x01, 0x03],
  "sidt [ebx]": [0x0f, 0x01, 0x0b],
  "lgdt [ebx]": [0x0f, 0x01, 0x13],
  "lidt [ebx]": [0x0f, 0x01, 0x1b],
  "invlpg [ebx]": [0x0f, 0x01, 0x3b],
  "sldt eax": [0x0f, 0x00, 0xc0],
  "str eax": [0x0f, 0x00, 0xc8],
  "mov eax, cr0": [0x0f, 0x20, 0xc0],
  "mov eax, cr3": [0x0f, 0x20, 0xd8],
  "mov eax, cr1": [0x0f, 0x20, 0xc8],
  "mov eax, cr7": [0x0f, 0x20, 0xf8],
  rdmsr: [0x0f, 0x32],
  rdpmc: [0x0f, 0x33],
  swapgs: [0x0f, 0x01, 0xf8],
  monitor: [0x0f, 0x01, 0xc8, 0x31, 0xc0],
  clac: [0x0f, 0x01, 0xca],
  stac: [0x0f, 0x01, 0xcb],
  xgetbv: [0x0f, 0x01, 0xd0],
  xsetbv: [0x0f, 0x01, 0xd1],
  in: [0xe4, 0x80, 0xb0, 0],
  out: [0xe6, 0x80],
  "in ax, 7fh": [0x66, 0xe5, 0x7f, 0x31, 0xc0],
  sysexit: [0x0f, 0x35],
  sysret: [0x0f, 0x07],
  sysenter: [0x0f, 0x34],
  syscall: [0x0f, 0x05],
  vmcall: [0x0f, 0x01, 0xc1],
  rsm: [0x0f, 0xaa],
  ud0: [0x0f, 0xff, 0xc0],
  ud1: [0x0f, 0xb9, 0xc0],
  ud2: [0x0f, 0x0b],
  into: [0xce],
  "aam 0": [0xd4, 0],
  bound: [0x62, 0x03],
  arpl: [0x63, 0xd8],
  salc: [0xd6],
};
/** What both machines have as exits, or what no two machines do alike. */
const NOT_ALIKE = new Set(["hlt", "rsm", "vmcall", "monitor", "sysexit", "sysret"]);
for (const [name, action] of Object.entries(guarded)) {
  for (const ring of [0, 3] as const) {
    if (ring === 0 && NOT_ALIKE.has(name)) continue;
    if (ring === 3 && name === "vmcall") continue;
    const isTable = /^(lgdt|lidt)/.test(name) && ring === 0;
    for (const iopl of ring === 3 ? [0, 0x3000] : [0]) {
      const options: Options = { ring, flags: iopl, registers: { ebx: isTable ? 0x3b20 : STACK[3] - 0x80, ecx: 0x1b, edx: 0 } };
      const setup = (m: CaseWriter): void => {
        m.writeMsr(0x174, 0); // SYSENTER_CS of null
        m.poke(0x3b20, 0x1ff, 2).poke(0x3b22, GDT).poke(0x3b26, 0);
        if (name === "lidt [ebx]") m.poke(0x3b20, 0xfff, 2).poke(0x3b22, 0x2000);
      };
      both(`${name} at privilege ${ring} IOPL ${iopl >>> 12}`, action, { ...options, setup });
      if (ring === 3)
        both(`${name} at privilege 3 IOPL ${iopl >>> 12}, UMIP`, action, {
          ...options,
          setup: (m) => {
            setup(m);
            m.writeCr(4, CR4.UMIP | (m.bits === 64 ? 0x20 : 0));
          },
          isLong: true,
        });
    }
  }
}

/** Ports that the task state segment's bitmap allows, does not, or does not reach. */
for (const [bitmap, limit] of [
  [0xffff_fffe, 0x90],
  [0, 0x90],
  [0, 0x88],
  [0, 0x67],
  [0x1_0000, 0x90],
] as const)
  for (const [name, action] of Object.entries({
    "in al, 0": [0xe4, 0],
    "in eax, 0": [0xe5, 0],
    "in al, 1": [0xe4, 1],
    "in ax, 0fh": [0x66, 0xe5, 0x0f],
    "in al, 40h": [0xe4, 0x40],
  }))
    both(`${name}, bitmap ${bitmap.toString(16)}, TSS limit ${limit.toString(16)}`, [...action, 0x31, 0xc0], {
      ring: 3,
      setup: (m) => {
        m.poke(IO_BITMAP, bitmap).poke(GDT + Selector.task, limit, 2);
        m.poke(GDT + Selector.task + 5, 0x89, 1)
          .load("eax", Selector.task)
          .bytes(0x0f, 0x00, 0xd8);
      },
    });

/** Arithmetic and its kin. */
const faults: Record<string, readonly number[]> = {
  "div by zero": [0xf7, 0xf1],
  "idiv overflow": [0xb8, 0, 0, 0, 0x80, 0x99, 0xb9, 0xff, 0xff, 0xff, 0xff, 0xf7, 0xf9],
  int3: [0xcc],
  "int 3": [0xcd, 3],
  "int 4": [0xcd, 4],
  "int 1": [0xcd, 1],
  "int 13": [0xcd, 13],
  "int 8": [0xcd, 8],
  "lock nop": [0xf0, 0x90],
  "lock add reg": [0xf0, 0x01, 0xc0],
  "lock mov": [0xf0, 0x89, 0x03],
  "lock bt": [0xf0, 0x0f, 0xa3, 0x03],
  "mov cs": [0x8e, 0xcb],
  "mov segment 6": [0x8e, 0xf0],
  "16 bytes": [0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90],
  "15 bytes": [0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90],
  "16 bytes, undefined": [...new Array<number>(14).fill(0x66), 0x0f, 0x0b],
  "jmp far register": [0xff, 0xe8],
  "call far register": [0xff, 0xd8],
  "lea register": [0x8d, 0xc0],
  "les register": [0xc4, 0xc0],
  "fe /2": [0xfe, 0xd0],
  "ff /7": [0xff, 0xf8],
  "8f /1": [0x8f, 0xc8],
  "f6 /1": [0xf6, 0xc8, 1],
  "0f ba /3": [0x0f, 0xba, 0xd8, 1],
  "cmpxchg8b register": [0x0f, 0xc7, 0xc8],
  "xsetbv of nothing": [0x0f, 0x01, 0xd1],
  movaps: [0x0f, 0x28, 0x43, 4],
  "clts and fninit": [0x0f, 0x06, 0xdb, 0xe3],
};
for (const [name, action] of Object.entries(faults))
  for (const ring of [0, 3] as const) {
    if (name.startsWith("clts") && ring === 3) continue;
    both(`${name} at privilege ${ring}`, action, {
      ring,
      registers: { ebx: STACK[3] - 0x80, eax: 0 },
      setup: (m) => void m.writeCr(4, CR4.OSFXSR | (m.bits === 64 ? 0x20 : 0)),
    });
  }

/** Coprocessor and SSE by CR0 and CR4; a memory operand that faults tells the order. */
const extensions: Record<string, readonly number[]> = {
  fnop: [0xd9, 0xd0],
  fwait: [0x9b],
  "fld [ebx]": [0xd9, 0x03],
  "movaps xmm0, [ebx]": [0x0f, 0x28, 0x03],
  "movaps xmm0, [misaligned]": [0x0f, 0x28, 0x43, 1],
  emms: [0x0f, 0x77],
  "movd mm0, [ebx]": [0x0f, 0x6e, 0x03],
  "ldmxcsr [ebx]": [0x0f, 0xae, 0x13],
  "fxsave [ebx]": [0x0f, 0xae, 0x03],
  "fxsave [misaligned]": [0x0f, 0xae, 0x43, 1],
  "xsave [ebx]": [0x0f, 0xae, 0x23],
  crc32: [0xf2, 0x0f, 0x38, 0xf0, 0xc0],
};
for (const [name, action] of Object.entries(extensions))
  for (const cr0 of [0, CR0.TS, CR0.EM, CR0.MP, CR0.MP | CR0.TS, CR0.EM | CR0.TS])
    for (const cr4 of [0, CR4.OSFXSR])
      for (const present of [true, false])
        both(`${name}, CR0 ${cr0.toString(16)}, CR4 ${cr4.toString(16)}, ${present ? "memory" : "no memory"}`, action, {
          registers: { ebx: present ? PAGE + 0x400 : 0x7000_0400 },
          paging: { mode: "long", cr0, cr4 },
          isLong: cases.length % 5 !== 0,
        });
for (const each of cases)
  if (each.bits === 32 && each.paging?.mode === "long") Object.assign(each, { paging: { ...each.paging, mode: "pae" } });

/** Alignment checks: only privilege 3 with AM and AC has them. */
const alignments: Record<string, readonly number[]> = {
  "read 4": [0x8b, 0x43, 1],
  "read 2": [0x66, 0x8b, 0x43, 1],
  "read 1": [0x8a, 0x43, 1],
  "write 4": [0x89, 0x43, 2],
  push: [0xff, 0x73, 1],
  "fld of 8": [0xdd, 0x43, 4],
  "fld of 10": [0xdb, 0x6b, 4],
  movups: [0x0f, 0x10, 0x43, 4],
  string: [0x89, 0xde, 0x46, 0xad],
  "across pages": [0x8b, 0x83, ...bytes32(0x0fff_fffd)],
  enter: [0xc8, 1, 0, 0],
};
for (const [name, action] of Object.entries(alignments))
  for (const am of [0, CR0.AM])
    for (const ac of [0, AC])
      for (const ring of [0, 3] as const)
        add(32, `alignment, ${name}, AM ${am !== 0}, AC ${ac !== 0}, privilege ${ring}`, action, {
          ring,
          flags: ac,
          registers: { ebx: STACK[3] - 0x80, ebp: STACK[3] - 0x41 },
          paging: { mode: "twoLevel", cr0: am, cr4: CR4.OSFXSR },
        });

/** Control registers, EFER, CR3: values that are refused. */
// Not those that turn off protection, which would leave no way back
for (const value of [0x11, 0x1, 0x2000_0011, 0x4000_0011, 0x6000_0011, 0x8000_0010, 0x1_0011, 0x31, 0x1ffa_ffd1])
  both(`mov cr0, ${value.toString(16)}`, [0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xc1, 0x31, 0xc0, 0x83, 0xc8, 0x11], {
    registers: { eax: value },
  });
for (let bit = 0; bit < 32; bit++)
  for (const bits of [32, 64] as const) {
    // LA57 in 64-bit mode, PCIDE outside, VMXE, CET, and what only one of the machines has
    if ([13, 14, 12, 17, 19, 23, 24, 25].includes(bit)) continue;
    add(bits, `mov cr4, bit ${bit}`, [0x0f, 0x22, 0xe0, 0x0f, 0x20, 0xe0], {
      registers: { eax: ((1 << bit) | (bits === 64 ? 0x20 : 0)) >>> 0 },
    });
  }
add(64, "mov cr4 without PAE", [0x0f, 0x22, 0xe0], { registers: { eax: 0 } });
add(64, "mov cr4, PCIDE", [0x0f, 0x22, 0xe0], { registers: { eax: 0x2_0020 } });
add(64, "mov cr4, LA57", [0x0f, 0x22, 0xe0], { registers: { eax: 0x1020 } });
add(32, "mov cr4, PCIDE", [0x0f, 0x22, 0xe0], { registers: { eax: 0x2_0000 } });
add(64, "mov cr0 with bits above 31", [0x0f, 0x22, 0xc0], { registers: { eax: 0x1_8000_0011n } });
add(64, "mov cr4 with bits above 31", [0x0f, 0x22, 0xe0], { registers: { eax: 0x1_0000_0020n } });
add(64, "mov cr3 with bit 63", [0x0f, 0x22, 0xd8], { registers: { eax: 0x8000_0000_0000_c000n } });
add(64, "mov cr8, 10h", [0x44, 0x0f, 0x22, 0xc0], { registers: { eax: 0x10 } });
add(64, "mov cr8, fh", [0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc2, 0x31, 0xc0, 0x44, 0x0f, 0x22, 0xc0], {
  registers: { eax: 15 },
});
for (const value of [0xd01, 0x501, 0x1500, 0xd02, 0x400, 0x100, 0x1_0000])
  both(`EFER ${value.toString(16)}`, [0x0f, 0x30, 0x0f, 0x32], { registers: { eax: value, ecx: 0xc000_0080, edx: 0 } });
for (const msr of [0xc000_0102, 0x176, 0x277])
  for (const [low, high] of [
    [0, 0],
    [0xffff_ffff, 0xffff_ffff],
    [0, 0x8000_0000],
    [2, 2],
  ] as const) {
    both(`WRMSR ${msr.toString(16)} of ${high.toString(16)}:${low.toString(16)}`, [0x0f, 0x30], {
      registers: { eax: low, ecx: msr, edx: high },
    });
  }

/** Addresses that are not canonical, by the segment that they are made with. */
for (const [name, action] of Object.entries({
  "read through DS": [0x8b, 0x03],
  "read through SS": [0x36, 0x8b, 0x03],
  "read through RBP": [0x48, 0x89, 0xdd, 0x8b, 0x45, 0],
  "write through FS": [0x64, 0x89, 0x03],
  "push there": [0x48, 0x89, 0xdc, 0x50],
  "pop there": [0x48, 0x89, 0xdc, 0x58],
  "call there": [0xff, 0xd3],
  "jmp there": [0xff, 0xe3],
  "ret there": [0x53, 0xc3],
  invlpg: [0x0f, 0x01, 0x3b],
  string: [0x48, 0x89, 0xde, 0xac],
  prefetch: [0x0f, 0x18, 0x03],
  "lgdt there": [0x0f, 0x01, 0x13],
  fxsave: [0x0f, 0xae, 0x03],
  clflush: [0x0f, 0xae, 0x3b],
}))
  for (const address of [
    0x8000_0000_0000n,
    0xffff_7fff_ffff_fff8n,
    0x7fff_ffff_fffcn,
    0x7fff_ffff_ffffn,
    0xffff_8000_0000_0000n,
  ])
    add(64, `${name} ${address.toString(16)}`, action, {
      registers: { ebx: address },
      paging: { mode: "long", cr4: CR4.OSFXSR },
    });
for (const offset of [0, 1, 2, 3, 5, 7])
  add(
    32,
    `PUSH at the stack's end, ESP ${offset}`,
    (m) => {
      m.bytes(0x8e, 0xd0, 0xbc, ...bytes32(offset), 0x50); // mov ss, ax; mov esp; push eax
      m.bytes(0xb8, 0x10, 0, 0, 0, 0x8e, 0xd0, 0xbc, ...bytes32(STACK[0]));
    },
    {
      registers: { eax: Selector.test },
      // Nothing can be pushed there: #DF's task handles it
      setup: (m) => void m.define(Selector.test, descriptor(PAGE + 0x80, 0xfff, 0x92, 4)),
    },
  );

/** Which of two reasons to fault comes first. */
for (const [name, action, setup] of [
  [
    "undefined instruction across the limit",
    [0xea, 0, 0, 0, 0, Selector.test, 0],
    (m: CaseWriter) => void m.define(Selector.test, descriptor(PAGE + 0x40, 0, 0x9a, 4)).poke(PAGE + 0x40, 0x0b0f),
  ],
  [
    "15 prefixes across the limit",
    [0xea, 0, 0, 0, 0, Selector.test, 0],
    (m: CaseWriter) =>
      void m
        .define(Selector.test, descriptor(PAGE + 0x40, 3, 0x9a, 4))
        .poke(PAGE + 0x40, 0x6666_6666)
        .poke(PAGE + 0x44, 0x6666_6666),
  ],
  [
    "far jump to null with bad memory",
    [0x64, 0xff, 0x2d, ...bytes32(0x1000)],
    (m: CaseWriter) =>
      void m
        .define(Selector.test, descriptor(PAGE, 0xfff, 0x92, 4))
        .load("eax", Selector.test)
        .bytes(0x8e, 0xe0),
  ],
] as const)
  for (const ring of [0, 3] as const) add(32, `${name} at privilege ${ring}`, action, { ring, setup });

export const exceptionCases: readonly SystemCase[] = cases;
