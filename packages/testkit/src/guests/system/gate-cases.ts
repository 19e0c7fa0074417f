/** Gates: calls and interrupts through them, to all that they may name. */
import { bytes32, type CaseWriter, type SystemCase } from "./case-writer.ts";
import { CODE, descriptor, gate, PAGE, PAGE_POPS, Selector, TSS } from "./layout.ts";

const PRESENT = 0x80;
const VECTOR = 0x60;
/** Access bytes of code segments that gates name: conforming and not, of each privilege, absent, and data. */
const targets = [0x9a, 0xba, 0xfa, 0x9e, 0xbe, 0xfe, 0x1a, 0x92, 0x89, 0x98];
/** Selectors that gates name beside the second test segment. */
const otherSelectors = [0, 3, 0x1f8, 0x200, 0x94];

/** The second test segment as the code that the gate leads to. In 64-bit code it begins at 0. */
function defineTarget(m: CaseWriter, access: number): void {
  if (m.bits === 64) m.define(Selector.second, descriptor(0, 0xf_ffff, access, access & 0x10 ? 0xa : 0));
  else m.define(Selector.second, descriptor(PAGE, 0xfff, access, 4));
}
const targetOffset = (bits: 32 | 64): number => PAGE_POPS + (bits === 64 ? PAGE : 0);

function callCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  // A far CALL or JMP to the gate. 64-bit code has it only through memory
  const transfer = (isCall: boolean, rpl: number): SystemCase["action"] => {
    const selector = Selector.gate | rpl;
    if (bits === 32) return [isCall ? 0x9a : 0xea, 0, 0, 0, 0, selector, 0];
    return [0xff, isCall ? 0x1b : 0x2b];
  };
  const pointer = 0x3b10;
  const add = (name: string, words: readonly number[], access: number, isCall: boolean, ring: 0 | 1 | 2 | 3, rpl: number) =>
    cases.push({
      name: `${isCall ? "call" : "jmp"} ${name}, RPL ${rpl} at privilege ${ring}`,
      bits,
      ring,
      registers: bits === 64 ? { ebx: pointer } : {},
      setup: (m) => {
        m.define(Selector.gate, words);
        defineTarget(m, access);
        if (bits === 64) m.poke(pointer, 0).poke(pointer + 4, Selector.gate | rpl);
      },
      action: transfer(isCall, rpl),
      isLong: cases.length % 7 !== 0,
    });
  for (const type of [4, 0xc])
    for (const isCall of [true, false])
      for (const ring of bits === 64 ? ([0] as const) : ([0, 1, 3] as const)) {
        for (const dpl of [0, 1, 3])
          for (const present of [0, PRESENT])
            for (const rpl of [0, 3]) {
              const access = present | (dpl << 5) | type;
              for (const target of targets)
                add(
                  `gate of type ${type} DPL ${dpl} ${present ? "present" : "absent"} to access ${target.toString(16)}`,
                  gate(Selector.second | (rpl === 0 ? 0 : 3), targetOffset(bits), access, dpl === 1 ? 2 : 0),
                  target,
                  isCall,
                  ring,
                  rpl,
                );
            }
        for (const selector of otherSelectors)
          add(
            `gate of type ${type} to selector ${selector.toString(16)}`,
            gate(selector, targetOffset(bits), 0xe0 | type),
            0x9a,
            isCall,
            ring,
            0,
          );
      }
  return cases;
}

/** INT n through gates of all types. */
function interruptCases(bits: 32 | 64): SystemCase[] {
  const cases: SystemCase[] = [];
  const add = (name: string, words: readonly number[], access: number, ring: 0 | 1 | 3, setup?: SystemCase["setup"]) =>
    cases.push({
      name: `INT ${name} at privilege ${ring}`,
      bits,
      ring,
      flags: 0x200,
      setup: (m) => {
        m.interruptGate(VECTOR, bits === 64 ? [...words, 0, 0] : words);
        defineTarget(m, access);
        setup?.(m);
      },
      action: [0xcd, VECTOR],
      isLong: cases.length % 5 !== 0,
    });
  for (let type = 0; type < 32; type++)
    for (const dpl of [0, 3])
      for (const present of [0, PRESENT])
        for (const ring of [0, 3] as const) {
          // A task gate to what is no task has its own cases
          add(
            `gate of type ${type.toString(16)} DPL ${dpl} ${present ? "present" : "absent"}`,
            gate(Selector.second, targetOffset(bits), present | (dpl << 5) | type),
            0x9a,
            ring,
          );
        }
  for (const type of bits === 64 ? [0xe, 0xf] : [6, 7, 0xe, 0xf])
    for (const ring of bits === 64 ? ([0, 3] as const) : ([0, 1, 3] as const)) {
      for (const target of targets)
        add(
          `gate of type ${type.toString(16)} to access ${target.toString(16)}`,
          gate(Selector.second, targetOffset(bits), 0xe0 | type),
          target,
          ring,
        );
      for (const selector of otherSelectors)
        add(
          `gate of type ${type.toString(16)} to selector ${selector.toString(16)}`,
          gate(selector, targetOffset(bits), 0xe0 | type | PRESENT),
          0x9a,
          ring,
        );
    }
  if (bits === 32) {
    // The inner stack that the task state segment names
    const stacks: [string, (m: CaseWriter) => void][] = [
      ["null SS0", (m) => void m.poke(TSS + 8, 0)],
      ["SS0 of privilege 3", (m) => void m.poke(TSS + 8, 0x23)],
      ["SS0 with RPL 3", (m) => void m.poke(TSS + 8, 0x13)],
      ["SS0 past the table", (m) => void m.poke(TSS + 8, 0x200)],
      ["SS0 of code", (m) => void m.poke(TSS + 8, 0x08)],
      ["absent SS0", (m) => void m.define(Selector.data16, descriptor(0, 0xffff, 0x12, 0)).poke(TSS + 8, Selector.data16)],
      ["SS0 too small", (m) => void m.define(Selector.data16, descriptor(0, 3, 0x92, 4)).poke(TSS + 8, Selector.data16)],
      // The handler looks at the stack through 16 bits as well
      [
        "16-bit SS0",
        (m) =>
          void m
            .define(Selector.data16, descriptor(0x3_0000, 0xffff, 0x92, 0))
            .poke(TSS + 4, 0x4f00)
            .poke(TSS + 8, Selector.data16),
      ],
    ];
    for (const [name, setup] of stacks) add(name, gate(CODE[0], PAGE + PAGE_POPS, 0xee), 0x9a, 3, setup);
  }
  return cases;
}

/** Tables that are too short, and faults while an exception is delivered. */
function deliveryCases(bits: 32 | 64): SystemCase[] {
  const bytes = bits / 4;
  const cases: SystemCase[] = [];
  /** LIDT with another limit: the vectors of the runtime stay within for those that need them. */
  const cut = (vector: number) => (m: CaseWriter) => {
    // Vectors above come to lie outside; #GP and #DF do not
    m.poke(0x3b00, vector * bytes + bytes - 2, 2)
      .poke(0x3b02, 0x2000)
      .poke(0x3b06, 0)
      .at(0x3b00, 3, 0x0f, 0x01);
  };
  for (const ring of [0, 3] as const) {
    cases.push({ name: `INT past the IDT at privilege ${ring}`, bits, ring, setup: cut(0x60), action: [0xcd, 0x61] });
    cases.push({
      name: `INT at the IDT's last bytes at privilege ${ring}`,
      bits,
      ring,
      setup: cut(0x60),
      action: [0xcd, 0x60],
    });
  }
  const bad: Record<string, (vector: number) => (m: CaseWriter) => void> = {
    "absent gate": (vector) => (m) => void m.poke(0x2000 + vector * bytes + 5, 0x0e, 1),
    "gate of no type": (vector) => (m) => void m.poke(0x2000 + vector * bytes + 5, 0x80, 1),
    "null selector": (vector) => (m) => void m.poke(0x2000 + vector * bytes + 2, 0, 2),
    "absent code": (vector) => (m) =>
      void m.define(Selector.second, descriptor(0, 0xf_ffff, 0x1b, 0xa)).poke(0x2000 + vector * bytes + 2, Selector.second, 2),
  };
  const first: Record<string, { vector: number; action: number[] }> = {
    "#DE": { vector: 0, action: [0x31, 0xc9, 0xf7, 0xf1] },
    "#BP": { vector: 3, action: [0xcc] },
    "#UD": { vector: 6, action: [0x0f, 0x0b] },
    "#NP": { vector: 11, action: [0x8e, 0xdb] },
    "#GP": { vector: 13, action: [0x0f, 0x22, 0xe3] },
    "#PF": { vector: 14, action: [0x8b, 0x03] },
    "#DB": { vector: 1, action: [0xf1] },
  };
  for (const [name, { vector, action }] of Object.entries(first))
    for (const [how, make] of Object.entries(bad)) {
      if (bits === 32 && name === "#PF") continue;
      cases.push({
        name: `${name} through ${how}`,
        bits,
        registers: { ebx: name === "#NP" ? Selector.test : name === "#PF" ? 0x7000_0000 : 0xffff_ffff },
        setup: (m) => {
          m.define(Selector.test, descriptor(PAGE, 0xfff, 0x12, 4));
          make(vector)(m);
        },
        action,
      });
    }
  return cases;
}

/** Interrupts return, with what may not be. */
function returnCases(): SystemCase[] {
  const flags = [0x2, 0x3202, 0x4_0002, 0x4002, 0x20_0002, 0x1_0002, 0xffff_ffff & ~0x2_4100, 0x18_0002];
  return ([0, 1, 3] as const).flatMap((ring) =>
    flags.flatMap((value): SystemCase[] =>
      [0, 0x3000].map((iopl) => ({
        name: `IRET with flags ${(value >>> 0).toString(16)} at privilege ${ring} IOPL ${iopl >>> 12}`,
        bits: 32,
        ring,
        flags: iopl,
        action: (m) => {
          const next = m.label();
          m.bytes(0x68, ...bytes32(value), 0x68, ...bytes32(CODE[ring]), 0xe8, 0, 0, 0, 0); // call to the next instruction
          m.bytes(0x83, 0x04, 0x24, 5, 0xcf).place(next); // add [esp], 5; iret
        },
      })),
    ),
  );
}

export const gateCases: readonly SystemCase[] = [
  ...callCases(32),
  ...callCases(64),
  ...interruptCases(32),
  ...interruptCases(64),
  ...deliveryCases(32),
  ...deliveryCases(64),
  ...returnCases(),
];
