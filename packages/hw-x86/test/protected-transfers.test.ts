/** Far transfers between privilege levels: gates, stacks, what faults first, and that what faults has changed nothing. */
import { describe, expect, it } from "vitest";
import {
  CS,
  DS,
  ES,
  FS,
  GS,
  RBX,
  RCX,
  RSP,
  SEG_ACCESS,
  SEG_BASE,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  segmentOffset,
  state,
  TR,
} from "../src/engine/cpu-state.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  GDT,
  imm32,
  KERNEL_CODE,
  KERNEL_CODE_32,
  KERNEL_DATA,
  KERNEL_STACK,
  SPARE,
  type SystemMachine,
  TASK,
  TSS,
  USER_CODE_32,
  USER_CODE_64,
  USER_DATA,
  USER_STACK,
} from "./system-machine.ts";

const HLT = 0xf4;
const RETF = 0xcb;
const TS = 10;
const NP = 11;
const SS_FAULT = 12;
const GP = 13;
const PF = 14;
const GATE = 0x58;
const GATE_16 = 4;
const GATE_32 = 12;
const NOT_CANONICAL = 0x8000_0000_0000n;
/** A present data or stack descriptor of user code's, for tests to change. */
const STACK = 0x68;

interface Gate {
  type?: number;
  dpl?: number;
  selector?: number;
  offset?: bigint;
  parameters?: number;
  present?: boolean;
  extended?: number;
}
function gate(m: SystemMachine, given: Gate = {}): void {
  const { type = GATE_32, dpl = 3, selector = KERNEL_CODE, offset = BigInt(DATA), parameters = 0, present = true } = given;
  const low = Number(offset & 0xffff_ffffn);
  m.memory.setUint32(GDT + GATE, ((selector << 16) | (low & 0xffff)) >>> 0, true);
  m.memory.setUint32(
    GDT + GATE + 4,
    ((low & 0xffff_0000) | (present ? 0x8000 : 0) | (dpl << 13) | (type << 8) | parameters) >>> 0,
    true,
  );
  m.memory.setUint32(GDT + GATE + 8, Number(offset >> 32n), true);
  m.memory.setUint32(GDT + GATE + 12, given.extended ?? 0, true);
}
const far = (opcode: number, selector: number, offset = 0): number[] => [
  opcode,
  ...imm32(offset),
  selector & 0xff,
  selector >> 8,
];
const call = (selector = GATE | 3): number[] => far(0x9a, selector);
/** CALL m16:32 or m16:64 at DATA + 0x100, and the pointer there. */
function callIndirect(m: SystemMachine, selector: number, offset = 0): number[] {
  m.memory.setUint32(DATA + 0x100, offset, true);
  m.memory.setUint16(DATA + 0x104, selector, true);
  return [0xff, 0x1c, 0x25, ...imm32(DATA + 0x100)];
}
function outcome(m: SystemMachine): [number, number] | undefined {
  const vector = m.runToHandler();
  return vector < 0 ? undefined : [vector, Number(m.stacked(0))];
}
const setSegment = (m: SystemMachine, segment: number, selector: number, access: number): void => {
  m.engine.set32(segmentOffset(segment) + SEG_SELECTOR, selector);
  m.engine.set32(segmentOffset(segment) + SEG_ACCESS, access);
};

describe("a 64-bit call gate", () => {
  function user(given: Gate = {}): SystemMachine {
    const m = createSystemMachine(64);
    m.ram[DATA] = HLT;
    gate(m, given);
    m.enterUser();
    return m;
  }
  const attempt = (m: SystemMachine): [number, number] | undefined => {
    m.code(...callIndirect(m, GATE | 3));
    return outcome(m);
  };

  it("leads to inner privilege with a null SS and four words on the task's stack, and RETFQ back", () => {
    const m = user();
    m.code(...callIndirect(m, GATE | 3));
    m.engine.setReg(RSP, 0x7_1234_5678n);
    expect(m.runToHandler()).toBe(-1);
    expect([m.rip, m.cpl, m.selector(SS), m.rsp]).toEqual([DATA + 1, 0, 0, KERNEL_STACK - 32]);
    expect([0, 1, 2, 3].map((index) => m.stacked(index))).toEqual([
      BigInt(CODE + 7),
      BigInt(USER_CODE_64),
      0x7_1234_5678n,
      BigInt(USER_DATA),
    ]);
    m.ram.set([0x48, RETF], DATA + 0x40);
    m.engine.set64(state.rip, BigInt(DATA + 0x40));
    m.engine.set32(state.activity, 0);
    // HLT behind the call: #GP
    m.ram[CODE + 7] = HLT;
    expect(m.runToHandler()).toBe(GP);
    expect([1, 2, 4, 5].map((index) => m.stacked(index))).toEqual([
      BigInt(CODE + 7),
      BigInt(USER_CODE_64),
      0x7_1234_5678n,
      BigInt(USER_DATA),
    ]);
  });

  it("reaches the upper half of the address space", () => {
    const offset = 0xffff_ff80_0000_0000n + BigInt(DATA);
    const m = user({ offset });
    const top = Number(m.engine.get64(state.cr3));
    m.memory.setBigUint64(top + 511 * 8, m.memory.getBigUint64(top, true), true);
    m.code(...callIndirect(m, GATE | 3));
    m.engine.run(100);
    expect(m.engine.get64(state.rip)).toBe(offset + 1n);
  });

  it.each([
    ["a second half that is a descriptor", { extended: 0x0c00 }, [GP, GATE]],
    ["a DPL below CPL", { dpl: 0 }, [GP, GATE]],
    ["one that is not present", { present: false }, [NP, GATE]],
    ["a null target", { selector: 0 }, [GP, 0]],
    ["a target that is 32-bit code", { selector: KERNEL_CODE_32 }, [GP, KERNEL_CODE_32]],
    ["a target that is data", { selector: KERNEL_DATA }, [GP, KERNEL_DATA]],
    ["a target past the table", { selector: 0x100 }, [GP, 0x100]],
    ["an address that is not canonical", { offset: NOT_CANONICAL }, [GP, 0]],
    ["a 16-bit gate", { type: GATE_16 }, [GP, GATE]],
  ] as [string, Gate, [number, number]][])("refuses %s", (_name, given, expected) => {
    expect(attempt(user(given))).toEqual(expected);
  });

  it("needs the task's stack: #TS past its limit, #SS for a pointer that is not canonical, before the target's #GP", () => {
    const short = user();
    short.engine.set64(segmentOffset(TR) + SEG_LIMIT, 8n);
    short.code(...callIndirect(short, GATE | 3));
    // Without a stack for the handler either that is a triple fault; what it began with is recorded
    short.engine.run(100);
    expect(short.guest.exceptions[0]).toMatchObject({ vector: TS, errorCode: TASK });
    const m = user({ offset: NOT_CANONICAL });
    m.memory.setBigUint64(TSS + 4, NOT_CANONICAL + 0x1000n, true);
    m.gate(SS_FAULT, 14, 0, KERNEL_CODE, 1);
    expect(attempt(m)).toEqual([SS_FAULT, 0]);
  });

  it("from compatibility mode at the same privilege pushes 64-bit words", () => {
    const m = createSystemMachine(64);
    m.ram[DATA] = HLT;
    gate(m);
    setSegment(m, CS, KERNEL_CODE_32, 0xc09b);
    m.engine.updateSegments();
    m.code(...call(GATE));
    expect(m.runToHandler()).toBe(-1);
    expect([m.rsp, m.stacked(0), m.stacked(1)]).toEqual([KERNEL_STACK - 16, BigInt(CODE + 7), BigInt(KERNEL_CODE_32)]);
  });
});

describe("a legacy call gate", () => {
  function user(given: Gate = {}): SystemMachine {
    const m = createSystemMachine(32);
    m.ram[DATA] = HLT;
    gate(m, given);
    m.descriptor(STACK, 0, 0xffff_ffff, 0xc093);
    m.memory.setUint32(TSS + 8, STACK, true);
    m.enterUser();
    for (let index = 0; index < 8; index++) m.memory.setUint32(USER_STACK + index * 4, 0x1111_0000 + index, true);
    return m;
  }

  it.each([
    [32, GATE_32, 4],
    [16, GATE_16, 2],
  ] as const)("of %i bits copies its parameters", (_bits, type, bytes) => {
    const m = user({ type, parameters: 3, offset: 0x1000n });
    m.ram[0x1000] = HLT;
    m.descriptor(KERNEL_CODE, 0, 0xffff_ffff, 0xc09b);
    m.code(...call());
    // The GDT lies there too, so that the code goes elsewhere
    m.descriptor(SPARE, DATA, 0xffff, 0x409b);
    gate(m, { type, parameters: 3, offset: 0x20n, selector: SPARE });
    m.ram[DATA + 0x20] = HLT;
    m.engine.run(100);
    expect([m.rip, m.rsp, m.selector(SS)]).toEqual([0x21, KERNEL_STACK - 7 * bytes, STACK]);
    const word = (index: number): number =>
      bytes === 4 ? m.memory.getUint32(m.rsp + index * 4, true) : m.memory.getUint16(m.rsp + index * 2, true);
    const mask = bytes === 4 ? 0xffff_ffff : 0xffff;
    const parameters = bytes === 4 ? [0x1111_0000, 0x1111_0001, 0x1111_0002] : [0x0000, 0x1111, 0x0001];
    expect([...Array(7).keys()].map(word)).toEqual([
      ...[(CODE + 7) & mask, USER_CODE_32],
      ...parameters,
      ...[USER_STACK & mask, USER_DATA],
    ]);
  });

  const faults: [string, (m: SystemMachine) => void, Gate, [number, number]][] = [
    ["a TSS that is too short", (m) => m.engine.set64(segmentOffset(TR) + SEG_LIMIT, 8n), {}, [TS, TASK]],
    ["a null stack selector", (m) => m.memory.setUint32(TSS + 8, 0, true), {}, [TS, 0]],
    ["a stack selector past the table", (m) => m.memory.setUint32(TSS + 8, 0x100, true), {}, [TS, 0x100]],
    ["a stack selector of another RPL", (m) => m.memory.setUint32(TSS + 8, STACK | 1, true), {}, [TS, STACK]],
    ["a stack of another DPL", (m) => m.descriptor(STACK, 0, 0xffff_ffff, 0xc0f3), {}, [TS, STACK]],
    ["a stack that is not writable", (m) => m.descriptor(STACK, 0, 0xffff_ffff, 0xc091), {}, [TS, STACK]],
    ["a stack that is not present", (m) => m.descriptor(STACK, 0, 0xffff_ffff, 0xc013), {}, [SS_FAULT, STACK]],
    [
      "a stack without room, before a target past its limit",
      (m) => m.descriptor(STACK, 0, 0x1000, 0x4093),
      { selector: SPARE, offset: 0x1000n },
      [SS_FAULT, STACK],
    ],
    ["a target past its limit", () => undefined, { selector: SPARE, offset: 0x1000n }, [GP, 0]],
    ["a target that is not present", (m) => m.descriptor(SPARE, DATA, 0xfff, 0x401b), { selector: SPARE }, [NP, SPARE]],
  ];
  it.each(faults)("meets %s", (_name, spoil, given, [vector, errorCode]) => {
    const m = user(given);
    m.descriptor(SPARE, DATA, 0xfff, 0x409b);
    spoil(m);
    m.code(...call());
    m.engine.run(100);
    expect(m.guest.exceptions[0]).toMatchObject({ vector, errorCode });
  });

  it("is no way out for JMP", () => {
    const m = user();
    m.code(...far(0xea, GATE | 3));
    expect(outcome(m)).toEqual([GP, KERNEL_CODE]);
  });
});

describe("a return to outer privilege", () => {
  function kernel(): SystemMachine {
    const m = createSystemMachine(64);
    setSegment(m, DS, KERNEL_DATA, 0xc093);
    setSegment(m, ES, 3, 0x1_0000);
    setSegment(m, FS, USER_DATA, 0xc0f3);
    setSegment(m, GS, 2, 0x1_0000);
    m.engine.set64(segmentOffset(GS) + SEG_BASE, 0x1234_5000n);
    m.engine.updateSegments();
    m.ram[DATA] = HLT;
    return m;
  }
  const frame = (m: SystemMachine, ...words: (number | bigint)[]): void =>
    words.forEach((word, index) => {
      m.memory.setBigUint64(KERNEL_STACK - 64 + index * 8, BigInt(word), true);
      m.engine.setReg(RSP, BigInt(KERNEL_STACK - 64));
    });

  it.each([
    ["RET", [0x48, RETF], [DATA, USER_CODE_64, USER_STACK, USER_DATA]],
    ["IRET", [0x48, 0xcf], [DATA, USER_CODE_64, 2, USER_STACK, USER_DATA]],
  ] as const)("by %s takes inner data segments away, and the RPL of null ones, whose bases stay", (_name, code, words) => {
    const m = kernel();
    frame(m, ...words);
    m.code(...code);
    expect(m.runToHandler()).toBe(GP);
    expect([DS, ES, FS, GS].map((segment) => m.selector(segment))).toEqual([0, 0, USER_DATA, 0]);
    expect(m.engine.get64(segmentOffset(GS) + SEG_BASE)).toBe(0x1234_5000n);
  });

  it.each([
    ["RET", [0x48, RETF], (ss: number) => [NOT_CANONICAL, USER_CODE_64, USER_STACK, ss]],
    ["IRET", [0x48, 0xcf], (ss: number) => [NOT_CANONICAL, USER_CODE_64, 2, USER_STACK, ss]],
  ] as const)("by %s looks at SS before it looks at RIP", (_name, code, words) => {
    const m = kernel();
    frame(m, ...words(KERNEL_DATA));
    m.code(...code);
    expect(outcome(m)).toEqual([GP, KERNEL_DATA]);
    const target = kernel();
    frame(target, ...words(USER_DATA));
    target.code(...code);
    expect(outcome(target)).toEqual([GP, 0]);
    expect(target.cpl).toBe(0);
    // The frame is where it was
    expect(target.stacked(4)).toBe(BigInt(KERNEL_STACK - 64));
  });

  it("gives a 16-bit stack 16 bits of its pointer", () => {
    const m = kernel();
    m.descriptor(STACK, 0, 0xffff, 0x00f3);
    frame(m, DATA, USER_CODE_32, 2, 0x5678_1000, STACK | 3);
    m.code(0x48, 0xcf);
    expect(m.runToHandler()).toBe(GP);
    expect(m.stacked(4)).toBe(BigInt(((KERNEL_STACK - 64) & ~0xffff) | 0x1000));
  });

  it("may leave SS null at CPL 0 to 2 of 64-bit code, and not at CPL 3 or for other code", () => {
    const m = createSystemMachine(64);
    m.ram[DATA] = HLT;
    frame(m, DATA, KERNEL_CODE, 2, USER_STACK, 0);
    m.code(0x48, 0xcf);
    expect(m.runToHandler()).toBe(-1);
    expect([m.rip, m.selector(SS), m.rsp]).toEqual([DATA + 1, 0, USER_STACK]);
    for (const [cs, ss] of [
      [USER_CODE_64, 3],
      [KERNEL_CODE_32, 0],
      [KERNEL_CODE, 1],
    ]) {
      const other = createSystemMachine(64);
      frame(other, DATA, cs, 2, USER_STACK, ss);
      other.code(0x48, 0xcf);
      expect(outcome(other)).toEqual([GP, 0]);
    }
  });

  it("is #GP with NT in long mode, and to a task that is not busy outside", () => {
    const m = createSystemMachine(64);
    m.engine.setFlags(0x4002);
    m.code(0x48, 0xcf);
    expect(outcome(m)).toEqual([GP, 0]);
    const legacy = createSystemMachine(32);
    legacy.engine.setFlags(0x4002);
    legacy.descriptor(SPARE, TSS + 0x100, 0x67, 0x89);
    legacy.memory.setUint16(TSS, SPARE, true);
    legacy.code(0xcf);
    expect(outcome(legacy)).toEqual([TS, SPARE]);
  });
});

describe("an accessed bit that cannot be set", () => {
  /** The GDT once more at 200 MiB, read-only, and a code segment there that was never used. */
  function machine(): SystemMachine {
    const m = createSystemMachine(64);
    const top = Number(m.engine.get64(state.cr3));
    m.memory.setBigUint64(top + 8192 + 100 * 8, 0x85n, true);
    m.engine.set64(state.gdtrBase, BigInt(100 * 0x20_0000 + GDT));
    m.descriptor(SPARE, 0, 0xffff_ffff, 0xa09a);
    return m;
  }
  const at = BigInt(100 * 0x20_0000 + GDT + SPARE + 5);

  it.each([
    ["JMP", (m: SystemMachine) => [0xff, 0x2c, 0x25, ...callIndirect(m, SPARE, DATA).slice(3)]],
    ["CALL", (m: SystemMachine) => callIndirect(m, SPARE, DATA)],
    ["RET", () => [0x48, RETF]],
    ["IRET", () => [0x48, 0xcf]],
  ] as [string, (m: SystemMachine) => number[]][])("faults %s, which has changed nothing", (_name, code) => {
    const m = machine();
    [DATA, SPARE, 2, USER_STACK, KERNEL_DATA].forEach((word, index) => {
      m.memory.setBigUint64(KERNEL_STACK - 64 + index * 8, BigInt(word), true);
    });
    m.engine.setReg(RSP, BigInt(KERNEL_STACK - 64));
    m.code(...code(m));
    expect(outcome(m)).toEqual([PF, 3]);
    expect(m.engine.get64(state.cr2)).toBe(at);
    expect([m.stacked(1), m.stacked(2), m.stacked(4)]).toEqual([BigInt(CODE), BigInt(KERNEL_CODE), BigInt(KERNEL_STACK - 64)]);
  });
});

describe("what AMD's processors do otherwise", () => {
  it("SYSRET leaves what is behind SS, but for the privilege", () => {
    for (const vendor of ["intel", "amd"] as const) {
      const m = createSystemMachine(64, { vendor });
      m.engine.set64(state.star, (0x1bn << 48n) | (0x08n << 32n));
      setSegment(m, SS, 0, 0x1_0000);
      m.engine.updateSegments();
      m.engine.setReg(RCX, BigInt(DATA));
      m.ram[DATA] = HLT;
      m.code(0x48, 0x0f, 0x07);
      m.engine.run(1);
      expect(m.selector(SS)).toBe(USER_DATA);
      expect(m.cpl).toBe(3);
      expect(m.engine.get32(segmentOffset(SS) + SEG_ACCESS)).toBe(vendor === "amd" ? 0x1_0060 : 0xc0f3);
    }
  });

  it("a far CALL with a 64-bit operand has 32 bits of offset", () => {
    const m = createSystemMachine(64, { vendor: "amd" });
    m.ram[DATA] = HLT;
    const code = callIndirect(m, KERNEL_CODE, DATA);
    m.code(0x48, ...code);
    expect(m.runToHandler()).toBe(-1);
    expect([m.rip, m.stacked(0)]).toEqual([DATA + 1, BigInt(CODE + 8)]);
  });

  it("LSS with a 64-bit operand has 32 bits of offset, and clears the upper half of its register", () => {
    for (const vendor of ["intel", "amd"] as const) {
      const m = createSystemMachine(64, { vendor });
      m.descriptor(SPARE, 0, 0xffff, 0x4093);
      m.memory.setBigUint64(DATA + 0x100, (BigInt(SPARE) << 32n) | 0x8765_4321n, true);
      m.memory.setUint16(DATA + 0x108, KERNEL_DATA, true);
      m.engine.setReg(RBX, 0xffff_ffff_ffff_ffffn);
      m.code(0x48, 0x0f, 0xb2, 0x1c, 0x25, ...imm32(DATA + 0x100), HLT);
      expect(m.runToHandler()).toBe(-1);
      expect([m.selector(SS), m.engine.reg(RBX)]).toEqual(
        vendor === "amd" ? [SPARE, 0x8765_4321n] : [KERNEL_DATA, (BigInt(SPARE) << 32n) | 0x8765_4321n],
      );
    }
  });

  it("a null selector leaves the base of FS", () => {
    for (const vendor of ["intel", "amd"] as const) {
      const m = createSystemMachine(64, { vendor });
      m.engine.set64(segmentOffset(FS) + SEG_BASE, 0x1234n);
      m.engine.setReg(RBX, 0n);
      m.code(0x8e, 0xe3, HLT); // mov fs, bx
      m.runToHandler();
      expect(m.engine.get64(segmentOffset(FS) + SEG_BASE)).toBe(vendor === "amd" ? 0x1234n : 0n);
    }
  });
});

describe("LLDT and LTR in 64-bit mode", () => {
  const LLDT = 2;
  const LTR = 3;
  function load(digit: number, upper: number, extended: number): [number, number] | undefined {
    const m = createSystemMachine(64);
    m.descriptor(STACK, 0x5000, 0x67, digit === LTR ? 0x89 : 0x82);
    m.memory.setUint32(GDT + STACK + 8, upper, true);
    m.memory.setUint32(GDT + STACK + 12, extended, true);
    m.engine.setReg(RBX, BigInt(STACK));
    m.code(0x0f, 0x00, 0xc3 | (digit << 3), HLT);
    return outcome(m);
  }
  it.each([
    ["LLDT", LLDT],
    ["LTR", LTR],
  ] as const)("%s takes a canonical base and nothing that looks like two descriptors", (_name, digit) => {
    expect(load(digit, 0xffff_8000, 0)).toBeUndefined();
    expect(load(digit, 0x0000_8000, 0)).toEqual([GP, STACK]);
    expect(load(digit, 0, 0x100)).toEqual([GP, STACK]);
  });
});

describe("LAR, LSL, VERR and VERW", () => {
  const LAR = 0x02;
  const LSL = 0x03;
  /** ZF and the result, for a system descriptor of each type. */
  function types(m: SystemMachine, opcode: number): number[] {
    const accepted: number[] = [];
    for (let type = 0; type < 16; type++) {
      m.descriptor(STACK, 0, 0x67, 0x80 | type);
      m.engine.setReg(RBX, BigInt(STACK));
      m.code(0x0f, opcode, 0xc3, HLT);
      m.runToHandler();
      if ((m.engine.readFlags() & 0x40) !== 0) accepted.push(type);
    }
    return accepted;
  }
  it.each([
    ["in 32-bit mode", 32, false, [1, 2, 3, 4, 5, 9, 11, 12], [1, 2, 3, 9, 11]],
    ["in 64-bit mode", 64, false, [2, 9, 11, 12], [2, 9, 11]],
    ["in compatibility mode", 64, true, [2, 9, 11, 12], [2, 9, 11]],
  ] as const)("know the system types %s", (_name, mode, compatible, rights, limits) => {
    const m = createSystemMachine(mode);
    if (compatible) {
      setSegment(m, CS, KERNEL_CODE_32, 0xc09b);
      m.engine.updateSegments();
    }
    expect(types(m, LAR)).toEqual(rights);
    expect(types(m, LSL)).toEqual(limits);
    expect(types(m, 0)).toEqual([]);
  });
});
