/** Segment registers and far transfers with descriptors of every type, and what LAR, LSL, VERR and VERW say of them. */
import { bytes32, type CaseWriter, type SystemCase } from "./case-writer.ts";
import { CODE, DATA, descriptor, LDT, PAGE, Selector, STACK, TSS } from "./layout.ts";

const PRESENT = 0x80;
const RINGS = [0, 1, 2, 3] as const;
/** All types of system descriptors, then of code and data: the low five bits of the access byte. */
const TYPES = Array.from({ length: 32 }, (_, type) => type);
/** The test segment as a descriptor of this access byte. */
const define =
  (access: number, flags = 4) =>
  (m: CaseWriter) =>
    void m.define(Selector.test, descriptor(PAGE, 0xfff, access, flags));

/** MOV and POP of segment registers, and the far loads. EBX has the selector. */
const loads = {
  ds: [0x8e, 0xdb],
  es: [0x8e, 0xc3],
  fs: [0x8e, 0xe3],
  gs: [0x8e, 0xeb],
  ss: [0x8e, 0xd3],
} as const;

function registerCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  for (const name of ["ds", "ss"] as const)
    for (const type of TYPES)
      for (const dpl of RINGS)
        for (const present of [0, PRESENT])
          for (const ring of bits === 64 ? ([0, 3] as const) : RINGS)
            for (const rpl of RINGS)
              cases.push({
                name: `mov ${name}, type ${type.toString(16)} DPL ${dpl} ${present ? "present" : "absent"} RPL ${rpl} at privilege ${ring}`,
                bits,
                ring,
                registers: { ebx: Selector.test | rpl },
                setup: define(present | (dpl << 5) | type),
                action: loads[name],
                isLong: cases.length % 29 !== 0,
              });
  return cases;
}

/** Selectors that are null, past the table's end, or in an LDT that is or is not there. */
function selectorCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  const selectors = [0, 1, 3, 0x1f8, 0x1fb, 0x200, 0x204, 0x4, 0x7, 0x7c, 0x84, 0xffff];
  for (const [name, action] of Object.entries(loads))
    for (const selector of selectors)
      for (const ring of [0, 3] as const)
        for (const hasLdt of [false, true])
          cases.push({
            name: `mov ${name}, selector ${selector.toString(16)} at privilege ${ring}, ${hasLdt ? "with" : "without"} LDT`,
            bits,
            ring,
            registers: { ebx: selector },
            setup: (m) => {
              m.poke(LDT, 0x0000_ffff).poke(LDT + 4, 0x00cf_f200);
              if (hasLdt) m.load("eax", Selector.ldt).bytes(0x0f, 0x00, 0xd0);
            },
            action,
          });
  return cases;
}

/** Far JMP, CALL and RET, IRET to the test descriptor as a code segment. */
function transferCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  // The target is the INT 81h at the segment's start; in 64-bit segments, which begin at 0, there is no such thing at 0
  const pointer = 0x3b00;
  const target = bits === 64 ? PAGE : 0;
  const kinds: Record<string, (selector: number) => (m: CaseWriter) => void> = {
    "far jmp": (selector) => (m) => {
      m.load("ebx", pointer + 0x10);
      if (bits === 32) m.bytes(0xea, ...bytes32(target), selector & 0xff, selector >>> 8);
      else m.bytes(0xff, 0x2b); // jmp far [rbx]
    },
    "far call": (selector) => (m) => {
      if (bits === 32) m.bytes(0x9a, ...bytes32(target), selector & 0xff, selector >>> 8);
      else m.load("ebx", pointer + 0x10).bytes(0xff, 0x1b);
    },
    "far ret": (selector) => (m) => {
      // What a return to an outer level takes from the stack
      m.bytes(0x68, ...bytes32(DATA[(selector & 3) as 0 | 3]), 0x68, ...bytes32(STACK[3]));
      m.bytes(0x68, ...bytes32(selector), 0x68, ...bytes32(target));
      if (bits === 64) m.bytes(0x48);
      m.bytes(0xcb);
    },
    iret: (selector) => (m) => {
      m.bytes(0x68, ...bytes32(DATA[(selector & 3) as 0 | 3]), 0x68, ...bytes32(STACK[3]));
      m.bytes(0x6a, 2, 0x68, ...bytes32(selector), 0x68, ...bytes32(target));
      if (bits === 64) m.bytes(0x48);
      m.bytes(0xcf);
    },
  };
  for (const [name, action] of Object.entries(kinds))
    for (const type of TYPES)
      for (const dpl of [0, 1, 3] as const)
        for (const present of [0, PRESENT])
          for (const ring of bits === 64 ? ([0] as const) : ([0, 1, 3] as const))
            for (const rpl of [0, 1, 3] as const) {
              // Tasks and gates have cases of their own, their descriptors other fields
              if (bits === 32 && [1, 3, 5, 9, 0xb].includes(type)) continue;
              // In 64-bit mode system descriptors have 16 bytes: the second half follows the test descriptor and is no upper half
              const access = present | (dpl << 5) | type;
              const selector = Selector.test | rpl;
              cases.push({
                name: `${name} to type ${type.toString(16)} DPL ${dpl} ${present ? "present" : "absent"} RPL ${rpl} at privilege ${ring}`,
                bits,
                ring,
                setup: (m) => {
                  if (bits === 64) m.define(Selector.test, descriptor(0, 0xf_ffff, access, type & 0x10 ? 0xa : 0));
                  else define(access)(m);
                  m.poke(pointer + 0x10, PAGE).poke(pointer + 0x14, selector);
                },
                action: action(selector),
                isLong: cases.length % 17 !== 0,
              });
            }
  return cases;
}

/** What the verifying instructions say: LAR to EAX, LSL to ECX, ZF of each and of VERR and VERW in DL, DH, BL, BH. */
function verifyCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  for (const type of TYPES)
    for (const dpl of RINGS)
      for (const present of [0, PRESENT])
        for (const ring of [0, 3] as const)
          for (const rpl of [0, 3] as const)
            cases.push({
              name: `LAR, LSL, VERR, VERW of type ${type.toString(16)} DPL ${dpl} ${present ? "present" : "absent"} RPL ${rpl} at privilege ${ring}`,
              bits,
              ring,
              registers: { esi: Selector.test | rpl },
              // Nothing follows the descriptor: the second half of one with 16 bytes is zero
              setup: (m) => {
                define(present | (dpl << 5) | type, 0xc)(m);
                m.poke(0x1078, 0).poke(0x107c, 0);
              },
              action: [0x0f, 0x02, 0xc6, 0x0f, 0x94, 0xc2, 0x0f, 0x03, 0xce, 0x0f, 0x94, 0xc6].concat([
                0x0f, 0x00, 0xe6, 0x0f, 0x94, 0xc3, 0x0f, 0x00, 0xee, 0x0f, 0x94, 0xc7,
              ]),
              isLong: cases.length % 11 !== 0,
            });
  return cases;
}

/**
 * LLDT and LTR of every type; in 64-bit code with a type in the upper half, where there must be none, and with a base that is not
 * canonical. The width of that is the processor's own, whatever CR4.LA57 is: 57 bits here, 48 in Bochs.
 */
function systemRegisterCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  for (const [name, modrm] of [
    ["lldt", 0xd3],
    ["ltr", 0xdb],
  ] as const)
    for (const type of TYPES)
      for (const access of [PRESENT, 0, PRESENT | 0x60])
        for (const upper of bits === 64 ? [0, 0x1f00, 0x100_0000] : [0])
          cases.push({
            name: `${name}, access ${(access | type).toString(16)}${bits === 64 ? `, upper half ${upper.toString(16)}` : ""}`,
            bits,
            registers: { ebx: Selector.test },
            setup: (m) => {
              m.define(Selector.test, descriptor(TSS, 0x67, access | type, 0));
              if (bits === 64) m.poke(0x1078, upper === 0x1f00 ? 0 : upper).poke(0x107c, upper === 0x1f00 ? upper : 0);
            },
            action: [0x0f, 0x00, modrm],
            isLong: cases.length % 5 !== 0,
          });
  for (const selector of [0, 3, 4, 0x74, 0x1f8, 0x200, 0x1fc])
    for (const [name, modrm] of [
      ["lldt", 0xd3],
      ["ltr", 0xdb],
    ] as const)
      for (const ring of [0, 3] as const)
        cases.push({
          name: `${name}, selector ${selector.toString(16)} at privilege ${ring}`,
          bits,
          ring,
          registers: { ebx: selector },
          action: [0x0f, 0x00, modrm],
        });
  return cases;
}

/** Limits: up and down, bytes and pages, at both sides, with what the access itself takes. */
function limitCases(): SystemCase[] {
  const cases: SystemCase[] = [];
  const forms = {
    "read 4": [0x8b, 0x03],
    "read 1": [0x8a, 0x03],
    "write 4": [0x89, 0x03],
    "write 1": [0x88, 0x03],
    "read 16": [0x0f, 0x10, 0x03],
    "write 8": [0xdd, 0x1b], // fstp qword [ebx]
  } as const;
  const segments: [string, number, number, number][] = [
    ["up, bytes", 0x92, 0x1f, 4],
    ["up, read-only", 0x90, 0x1f, 4],
    ["up, pages", 0x92, 0, 0xc],
    ["down, bytes", 0x96, 0x1f, 4],
    ["down, 16 bits", 0x96, 0x1f, 0],
    ["down, pages", 0x96, 0, 0xc],
    ["code, readable", 0x9a, 0x1f, 4],
    ["code, execute-only", 0x98, 0x1f, 4],
  ];
  for (const [what, access, limit, flags] of segments)
    for (const [form, action] of Object.entries(forms))
      for (const offset of [0, 0x1c, 0x1d, 0x1f, 0x20, 0xffc, 0xfff, 0x1000, 0xfffc, 0xfffe, 0xffff, 0x1_0000, -4, -1])
        for (const register of ["ds", "ss"] as const) {
          if (register === "ss" && (access & 0x0a) !== 2) continue;
          cases.push({
            name: `${register} ${what}: ${form} at ${offset}`,
            bits: 32,
            registers: { ebx: offset },
            setup: (m) => {
              m.define(Selector.test, descriptor(PAGE + 0x20, limit, access, flags))
                .writeCr(4, 0x600)
                .bytes(0xdb, 0xe3); // fninit
              m.bytes(0xd9, 0xe8); // fld1
              m.load("eax", Selector.test).bytes(0x8e, 0xe0); // mov fs, ax
            },
            // SS cannot be left without a stack: a prefix of SS is tried where SS itself is loaded and put back
            action: (m) => {
              if (register === "ds") return void m.bytes(0x64, ...action);
              m.bytes(0x8e, 0xd0, 0x36, ...action); // mov ss, ax; the access
              m.bytes(0x66, 0xb8, 0x10, 0, 0x8e, 0xd0); // mov ax, data; mov ss, ax
            },
            isLong: cases.length % 7 !== 0,
          });
        }
  return cases;
}

/** Code that runs into the end of its segment. */
function codeLimitCases(): SystemCase[] {
  return [0, 1, 2, 3, 4, 5].flatMap((limit): SystemCase[] =>
    [0x1, 0x10_0].map((offset) => ({
      name: `code segment of limit ${limit}, jump to ${offset}`,
      bits: 32,
      setup: (m) => {
        m.define(Selector.test, descriptor(PAGE + 0x60, limit, 0x9a, 4));
        // NOP, then MOV EAX, imm32 of five bytes
        m.poke(PAGE + 0x60, 0x1122_b890).poke(PAGE + 0x64, 0x81cd_4433);
      },
      action: [0xea, offset & 0xff, offset >>> 8, 0, 0, Selector.test, 0],
    })),
  );
}

/** Return to outer privilege: what becomes of data segments, and what SS may be. */
function outerReturnCases(): SystemCase[] {
  const cases: SystemCase[] = [];
  for (const access of [0x92, 0xf2, 0xb2, 0x9a, 0xfa, 0x9e, 0xfe, 0x98, 0x72, 0xf0, 0xf6])
    for (const what of ["ss", "ds"] as const)
      for (const rpl of [0, 3])
        for (const instruction of ["iret", "ret"] as const)
          cases.push({
            name: `${instruction} to privilege 3, ${what} of access ${access.toString(16)}, RPL ${rpl}`,
            bits: 32,
            setup: (m) => {
              m.define(Selector.test, descriptor(0, 0xf_ffff, access, 0xc));
              if (what === "ds" && (access & 0x80) !== 0 && (access & 0x1a) !== 0x18)
                m.load("eax", Selector.test).bytes(0x8e, 0xd8, 0x8e, 0xc0);
            },
            action: (m) => {
              const ss = what === "ss" ? Selector.test | rpl : 0x23;
              m.bytes(0x68, ...bytes32(ss), 0x68, ...bytes32(0x3_1f00));
              if (instruction === "iret") m.bytes(0x6a, 2);
              m.bytes(0x6a, CODE[3], 0x68, ...bytes32(PAGE), instruction === "iret" ? 0xcf : 0xcb);
            },
          });
  return cases;
}

export const segmentCases: readonly SystemCase[] = [
  ...registerCases(32),
  ...registerCases(64),
  ...selectorCases(32),
  ...selectorCases(64),
  ...transferCases(32),
  ...transferCases(64),
  ...verifyCases(32),
  ...verifyCases(64),
  ...systemRegisterCases(32),
  ...systemRegisterCases(64),
  ...limitCases(),
  ...codeLimitCases(),
  ...outerReturnCases(),
];
