/**
 * Gates of 64-bit interrupt tables: what is looked at first, and whose the fault is that delivery meets (Intel SDM Vol. 2A, INT n/INTO/INT3/INT1
 * - Call to Interrupt Procedure; Vol. 3A, Interrupt and Exception Handling in 64-bit Mode; Error Code).
 */
import { describe, expect, it } from "vitest";
import { CS, RSP, SEG_ACCESS, SEG_LIMIT, SEG_SELECTOR, SS, segmentOffset, state, TR } from "../src/engine/cpu-state.ts";
import { Vector } from "../src/engine/system/bits.ts";
import { mapLong } from "./page-tables.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  GDT,
  HANDLERS,
  IDT,
  IST_STACK,
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

const { TS, NP, SS: SS_FAULT, GP, PF, UD } = Vector;
const VECTOR = 0x90;
/** Of error codes that name an entry of the IDT. */
const IN_IDT = 2;
const CALL_GATE = 0xc;
const INTERRUPT_GATE = 0xe;
const NOT_CANONICAL = 0x8000_0000_0000n;
const UNMAPPED = 0x12_3456_7000n;
const INT_N = [0xcd, VECTOR];
const UD2 = [0x0f, 0x0b];
const HLT = 0xf4;

interface Gate {
  readonly type?: number;
  readonly dpl?: number;
  readonly present?: boolean;
  readonly selector?: number;
  readonly offset?: bigint;
  readonly ist?: number;
}
function gate(m: SystemMachine, vector: number, given: Gate): void {
  const { type = INTERRUPT_GATE, dpl = 3, present = true, selector = KERNEL_CODE, ist = 0 } = given;
  m.gate(vector, type, dpl, selector, ist);
  const at = IDT + vector * 16;
  const { offset } = given;
  if (!present) m.memory.setUint32(at + 4, m.memory.getUint32(at + 4, true) & ~0x8000, true);
  if (offset === undefined) return;
  m.memory.setUint16(at, Number(offset & 0xffffn), true);
  m.memory.setUint16(at + 6, Number((offset >> 16n) & 0xffffn), true);
  m.memory.setUint32(at + 8, Number(offset >> 32n), true);
}

/** Who asks for the handler, and the EXT bit of what goes wrong on the way: INT n, an exception, an interrupt. */
type Source = readonly [name: "INT n" | "an exception" | "an interrupt", vector: number, external: 0 | 1];
const SOURCES: readonly [Source, Source, Source] = [
  ["INT n", VECTOR, 0],
  ["an exception", UD, 1],
  ["an interrupt", VECTOR, 1],
];

/** The fault that delivery meets. From user code, through a gate that `given` describes. */
function met(
  source: Source,
  given: Gate,
  spoil: (m: SystemMachine) => void = () => undefined,
): [number, number | undefined] | undefined {
  const [name, vector] = source;
  const m = createSystemMachine(64);
  gate(m, vector, given);
  m.enterUser();
  spoil(m);
  m.code(...(name === "INT n" ? INT_N : name === "an exception" ? UD2 : [0x90]));
  if (name === "an interrupt")
    m.engine.deliverEvent({ vector, type: 0, errorCode: undefined, instructionLength: 0, payload: 0n, injected: false });
  else m.engine.run(1);
  const fault = m.guest.exceptions[name === "an exception" ? 1 : 0];
  return fault === undefined ? undefined : [fault.vector, fault.errorCode];
}

const spare = (access: number) => (m: SystemMachine) => m.descriptor(SPARE, 0, 0xffff_ffff, access);
const shortTask = (m: SystemMachine): void => m.engine.set64(segmentOffset(TR) + SEG_LIMIT, 8n);
const innerStack =
  (pointer: bigint, at = 4) =>
  (m: SystemMachine): void =>
    m.memory.setBigUint64(TSS + at, pointer, true);
const IST_1 = 36;
/** What is wrong, and the vector and error code (without EXT); each has what comes after it wrong as well. `idt`: the entry's own. */
const faults: readonly [string, Gate, (m: SystemMachine) => void, number, number | "idt"][] = [
  ["no gate but one for calls, not present", { type: CALL_GATE, present: false }, () => undefined, GP, "idt"],
  ["a gate of 16 bits", { type: 6 }, () => undefined, GP, "idt"],
  ["a gate that is not present, for a null selector", { present: false, selector: 0 }, () => undefined, NP, "idt"],
  ["a null selector", { selector: 3 }, () => undefined, GP, 0],
  ["a selector past the table", { selector: 0x100 }, () => undefined, GP, 0x100],
  ["a data segment that is not present", { selector: SPARE }, spare(0xc013), GP, SPARE],
  [
    "code of an outer level that is not present",
    { selector: USER_CODE_64 },
    (m) => {
      // Outer than the kernel, where the event then is from
      m.engine.set32(segmentOffset(SS) + SEG_ACCESS, 0xc093);
      m.engine.set32(segmentOffset(CS) + SEG_ACCESS, 0xa09b);
      m.engine.updateSegments();
      m.descriptor(USER_CODE_64, 0, 0xffff_ffff, 0xa07b);
    },
    GP,
    USER_CODE_64 & 0xfffc,
  ],
  ["32-bit code that is not present", { selector: SPARE }, spare(0xc01b), GP, SPARE],
  ["16-bit code that is not present", { selector: SPARE }, spare(0x001b), GP, SPARE],
  ["code of both sizes that is not present", { selector: SPARE }, spare(0xe01b), GP, SPARE],
  [
    "code that is not present, and a short task",
    { selector: SPARE },
    (m) => {
      spare(0xa01b)(m);
      shortTask(m);
    },
    NP,
    SPARE,
  ],
  ["a task too short for the inner stack", { offset: NOT_CANONICAL }, shortTask, TS, TASK],
  [
    "a task too short for the stack table",
    { ist: 7, offset: NOT_CANONICAL },
    (m) => m.engine.set64(segmentOffset(TR) + SEG_LIMIT, 90n),
    TS,
    TASK,
  ],
  ["an inner stack that is not canonical", { offset: NOT_CANONICAL }, innerStack(NOT_CANONICAL + 0x100n), SS_FAULT, 0],
  [
    "an inner stack that reaches out of the lower half",
    { offset: NOT_CANONICAL },
    innerStack(0xffff_8000_0000_0010n),
    SS_FAULT,
    0,
  ],
  [
    "a stack of the table that is not canonical",
    { ist: 1, offset: NOT_CANONICAL },
    innerStack(NOT_CANONICAL + 0x100n, IST_1),
    SS_FAULT,
    0,
  ],
  ["a target that is not canonical, before a stack that is not there", { offset: NOT_CANONICAL }, innerStack(UNMAPPED), GP, 0],
];

describe.each(SOURCES)("%s", (...source: Source) => {
  const [, vector, external] = source;
  it.each(faults)("meets %s", (_name, given, spoil, expected, error) => {
    const code = error === "idt" ? vector * 8 + IN_IDT : error;
    expect(met(source, given, spoil)).toEqual([expected, code | external]);
  });

  it("meets the end of the table", () => {
    expect(met(source, {}, (m) => m.engine.set32(state.idtrLimit, vector * 16 + 14))).toEqual([
      GP,
      (vector * 8 + IN_IDT) | external,
    ]);
    expect(met(source, {}, (m) => m.engine.set32(state.idtrLimit, vector * 16 + 15))).toBeUndefined();
  });

  it("meets a stack that is not there, as the supervisor that it would be", () => {
    expect(met(source, {}, innerStack(UNMAPPED + 0x800n))).toEqual([PF, 2]);
  });

  it("meets the second half of an entry before what is wrong with its first", () => {
    const at = 5n << 39n;
    const fault = met(source, {}, (m) => {
      mapLong(m, at, BigInt(DATA), 3n);
      // A task gate, whose second half would be on the next page
      m.memory.setBigUint64(DATA + 0xff8, 0x8500_0000_0000n, true);
      m.engine.set64(state.idtrBase, at + 0xff8n - BigInt(vector * 16));
    });
    expect(fault).toEqual([PF, 0]);
  });
});

describe("the privilege of a gate", () => {
  it("is asked of INT n, INT3 and INTO alone, before its presence and behind its type", () => {
    for (const present of [true, false]) {
      expect(met(SOURCES[0], { dpl: 0, present })).toEqual([GP, VECTOR * 8 + IN_IDT]);
      expect(met(SOURCES[1], { dpl: 0, present })).toEqual(present ? undefined : [NP, (UD * 8 + IN_IDT) | 1]);
      expect(met(SOURCES[2], { dpl: 0, present })).toEqual(present ? undefined : [NP, (VECTOR * 8 + IN_IDT) | 1]);
    }
  });

  it.each([
    ["INT3", [0xcc], 3, false, 0],
    ["INTO", [0xce], 4, true, 0],
    ["INT1", [0xf1], 1, false, undefined],
  ] as const)("%s", (_name, code, vector, isCompatible, external) => {
    const m = createSystemMachine(64);
    gate(m, vector, { dpl: 0 });
    m.enterUser();
    if (isCompatible) {
      m.engine.set32(segmentOffset(CS) + SEG_ACCESS, 0xc0fb);
      m.engine.set32(segmentOffset(CS) + SEG_SELECTOR, USER_CODE_32);
      m.engine.setFlags(0x802);
      m.engine.updateSegments();
    }
    m.code(...code);
    m.engine.run(1);
    const fault = m.guest.exceptions[1];
    if (external === undefined) expect(fault).toBeUndefined();
    else expect(fault).toMatchObject({ vector: GP, errorCode: vector * 8 + IN_IDT + external });
  });

  it("INT1 and its kin differ in EXT too", () => {
    for (const [code, vector, external] of [
      [0xcc, 3, 0],
      [0xf1, 1, 1],
    ] as const) {
      const m = createSystemMachine(64);
      gate(m, vector, { present: false });
      m.enterUser();
      m.code(code);
      m.engine.run(1);
      expect(m.guest.exceptions[1]).toMatchObject({ vector: NP, errorCode: vector * 8 + IN_IDT + external });
    }
  });
});

describe("the handler's stack", () => {
  it("is aligned to 16 bytes whichever it is, and SS becomes null where privilege changes only", () => {
    for (const [ist, isUser] of [
      [0, true],
      [1, true],
      [0, false],
      [1, false],
    ] as const) {
      const m = createSystemMachine(64);
      gate(m, VECTOR, { ist });
      if (isUser) m.enterUser();
      const stack = isUser ? USER_STACK + 5 : KERNEL_STACK - 0x105;
      m.engine.setReg(RSP, BigInt(stack));
      innerStack(BigInt(KERNEL_STACK + 11))(m);
      innerStack(BigInt(IST_STACK + 7), IST_1)(m);
      m.code(...INT_N);
      expect(m.runToHandler()).toBe(VECTOR);
      const top = ist === 1 ? IST_STACK : isUser ? KERNEL_STACK : stack & ~15;
      expect([m.rsp, m.selector(SS)]).toEqual([top - 40, isUser ? 0 : KERNEL_DATA]);
      expect([m.stacked(3), m.stacked(4)]).toEqual([BigInt(stack), BigInt(isUser ? USER_DATA : KERNEL_DATA)]);
    }
  });

  it("from compatibility mode is one of 64 bits", () => {
    const m = createSystemMachine(64);
    gate(m, VECTOR, {});
    m.enterUser();
    m.engine.set32(segmentOffset(CS) + SEG_ACCESS, 0xc0fb);
    m.engine.set32(segmentOffset(CS) + SEG_SELECTOR, USER_CODE_32);
    m.engine.updateSegments();
    m.code(...INT_N);
    expect(m.runToHandler()).toBe(VECTOR);
    expect([m.rip, m.rsp]).toEqual([HANDLERS + VECTOR * 16 + 1, KERNEL_STACK - 40]);
    expect([0, 1, 3].map((index) => m.stacked(index))).toEqual([BigInt(CODE + 2), BigInt(USER_CODE_32), BigInt(USER_STACK)]);
  });
});

describe("a far CALL through a gate from compatibility mode", () => {
  const GATE = 0x58;
  function caller(isUser: boolean, target: bigint): SystemMachine {
    const m = createSystemMachine(64);
    m.ram[DATA] = HLT;
    if (isUser) m.enterUser();
    m.engine.set32(segmentOffset(CS) + SEG_ACCESS, isUser ? 0xc0fb : 0xc09b);
    m.engine.set32(segmentOffset(CS) + SEG_SELECTOR, isUser ? USER_CODE_32 : KERNEL_CODE_32);
    m.engine.updateSegments();
    const low = Number(target & 0xffff_ffffn);
    m.memory.setUint32(GDT + GATE, ((KERNEL_CODE << 16) | (low & 0xffff)) >>> 0, true);
    m.memory.setUint32(GDT + GATE + 4, ((low & 0xffff_0000) | 0xec00) >>> 0, true);
    m.memory.setBigUint64(GDT + GATE + 8, target >> 32n, true);
    return m;
  }
  /** CALL ptr16:32 and, with an operand-size prefix, ptr16:16: the gate says how large what is pushed is. */
  const calls = [
    ["32-bit", [0x9a, ...imm32(0x7777_7777), GATE | 3, 0]],
    ["16-bit", [0x66, 0x9a, 0x77, 0x77, GATE | 3, 0]],
  ] as const;

  it.each(calls)("of %s operands pushes four words of 64 bits on the task's stack, as it is", (_name, code) => {
    const m = caller(true, BigInt(DATA));
    innerStack(BigInt(KERNEL_STACK + 4))(m);
    m.code(...code);
    expect(m.runToHandler()).toBe(-1);
    expect([m.rip, m.cpl, m.rsp, m.selector(SS)]).toEqual([DATA + 1, 0, KERNEL_STACK + 4 - 32, 0]);
    expect([0, 1, 2, 3].map((index) => m.stacked(index))).toEqual([
      BigInt(CODE + code.length),
      BigInt(USER_CODE_32),
      BigInt(USER_STACK),
      BigInt(USER_DATA),
    ]);
  });

  it.each(calls)("of %s operands at the same privilege pushes two", (_name, code) => {
    const m = caller(false, BigInt(DATA));
    m.code(...code);
    expect(m.runToHandler()).toBe(-1);
    expect([m.rip, m.cpl, m.rsp, m.selector(SS)]).toEqual([DATA + 1, 0, KERNEL_STACK - 16, KERNEL_DATA]);
    expect([m.stacked(0), m.stacked(1)]).toEqual([BigInt(CODE + code.length), BigInt(KERNEL_CODE_32)]);
  });

  it("meets its stack before its target, and its target before its stack's pages", () => {
    const code = calls[0][1];
    const fault = (m: SystemMachine): unknown => {
      m.code(...code);
      m.engine.run(1);
      const [first] = m.guest.exceptions;
      return first && [first.vector, first.errorCode];
    };
    const first = caller(true, NOT_CANONICAL);
    innerStack(NOT_CANONICAL + 0x100n)(first);
    expect(fault(first)).toEqual([SS_FAULT, 0]);
    const second = caller(true, NOT_CANONICAL);
    innerStack(UNMAPPED)(second);
    expect(fault(second)).toEqual([GP, 0]);
    const third = caller(true, BigInt(DATA));
    innerStack(UNMAPPED)(third);
    expect(fault(third)).toEqual([PF, 2]);
  });
});
