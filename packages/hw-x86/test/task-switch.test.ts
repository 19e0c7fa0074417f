/** Hardware task switches (Intel SDM Vol. 3A, Task Management). */
import { describe, expect, it } from "vitest";
import { BANK_FIRST_FREE, DS, LDTR, RAX, RSP, state, TR } from "../src/engine/cpu-state.ts";
import { accessOf } from "../src/engine/system/descriptors.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  GDT,
  HANDLERS,
  IDT,
  imm32,
  KERNEL_CODE,
  KERNEL_DATA,
  KERNEL_STACK,
  type SystemMachine,
  TASK,
  TSS,
  USER_CODE_32,
  USER_DATA,
} from "./system-machine.ts";

const OTHER = 0x50;
const OTHER_TSS = 0x3100;
const OTHER_CODE = 0x1_4000;
const OTHER_STACK = 0x2_8000;
const GATE = 0x58;
const LDT_SELECTOR = 0x60;
const HLT = 0xf4;
const IRET = 0xcf;
const NT = 0x4000;
const TS = 10;
const NP = 11;
const SS_FAULT = 12;
const GP = 13;
const CR0_TS = 8n;

interface Task {
  rip?: number;
  flags?: number;
  cs?: number;
  ss?: number;
  ds?: number;
  ldt?: number;
  rax?: number;
  trap?: boolean;
}

function fill32(m: SystemMachine, at: number, task: Task): void {
  const words: [number, number][] = [
    [0x20, task.rip ?? OTHER_CODE],
    [0x24, task.flags ?? 2],
    [0x28, task.rax ?? 0x1111_2222],
    [0x38, OTHER_STACK],
    [0x48, task.ds ?? KERNEL_DATA],
    [0x4c, task.cs ?? KERNEL_CODE],
    [0x50, task.ss ?? KERNEL_DATA],
    [0x54, task.ds ?? KERNEL_DATA],
    [0x58, 0],
    [0x5c, 0],
    [0x60, task.ldt ?? 0],
    [0x64, task.trap ? 1 : 0],
  ];
  for (const [offset, value] of words) m.memory.setUint32(at + offset, value, true);
  // The stack for inner levels, as in the first task
  m.memory.setUint32(at + 4, KERNEL_STACK, true);
  m.memory.setUint32(at + 8, KERNEL_DATA, true);
}
function fill16(m: SystemMachine, at: number): void {
  const words: [number, number][] = [
    [0x0e, 0x4000],
    [0x10, 2],
    [0x12, 0x2222],
    [0x1a, 0x7000],
    [0x22, KERNEL_DATA],
    [0x24, KERNEL_CODE],
    [0x26, KERNEL_DATA],
    [0x28, KERNEL_DATA],
    [0x2a, 0],
  ];
  for (const [offset, value] of words) m.memory.setUint16(at + offset, value, true);
}

function machine(task: Task = {}): SystemMachine {
  const m = createSystemMachine(32);
  fill32(m, OTHER_TSS, task);
  m.descriptor(OTHER, OTHER_TSS, 0x67, 0x89);
  put(m, OTHER_CODE, HLT);
  m.engine.setFlags(2);
  return m;
}
function put(m: SystemMachine, at: number, ...bytes: number[]): void {
  m.ram.set(bytes, at);
  if (m.engine.holdsCode(BANK_FIRST_FREE + (at & ~0xfff))) m.engine.codeWritten(BANK_FIRST_FREE + at, bytes.length);
}
/** A task gate at this GDT or IDT address. */
function taskGate(m: SystemMachine, at: number, selector: number, dpl = 0): void {
  m.memory.setUint32(at, selector << 16, true);
  m.memory.setUint32(at + 4, 0x8500 | (dpl << 13), true);
}
const far = (opcode: number, selector: number): number[] => [opcode, 0, 0, 0, 0, selector & 0xff, selector >> 8];
const jump = (selector = OTHER): number[] => far(0xea, selector);
const call = (selector = OTHER): number[] => far(0x9a, selector);
const typeOf = (m: SystemMachine, selector: number): number => m.ram[GDT + (selector & 0xfff8) + 5] & 0xf;
const word = (m: SystemMachine, at: number): number => m.memory.getUint32(at, true);
const half = (m: SystemMachine, at: number): number => m.memory.getUint16(at, true);

describe("a switch by JMP", () => {
  it.each([
    ["a TSS", OTHER],
    ["a task gate", GATE],
  ] as const)("through %s saves the old task and loads the new one", (_name, selector) => {
    const m = machine();
    taskGate(m, GDT + GATE, OTHER);
    m.engine.setReg(RAX, 0xaaaa_bbbbn);
    m.engine.setFlags(2 | 0x41);
    m.engine.set64(state.dr + 56, 0x4ffn);
    m.code(...jump(selector));
    expect(m.runToHandler()).toBe(-1);
    expect(m.rip).toBe(OTHER_CODE + 1);
    expect(m.engine.reg(RAX)).toBe(0x1111_2222n);
    expect(m.engine.reg(RSP)).toBe(BigInt(OTHER_STACK));
    expect(m.selector(TR)).toBe(OTHER);
    expect(accessOf(m.engine, TR)).toBe(0x8b);
    expect(m.engine.get64(state.cr0) & CR0_TS).toBe(CR0_TS);
    expect(m.engine.get64(state.dr + 56)).toBe(0x4aan);
    expect(m.engine.readFlags() & NT).toBe(0);
    expect([typeOf(m, TASK), typeOf(m, OTHER)]).toEqual([9, 11]);
    expect(word(m, TSS + 0x20)).toBe(CODE + 7);
    expect(word(m, TSS + 0x24)).toBe(2 | 0x41);
    expect(word(m, TSS + 0x28)).toBe(0xaaaa_bbbb);
    expect(half(m, TSS + 0x4c)).toBe(KERNEL_CODE);
    expect(half(m, OTHER_TSS)).toBe(0);
  });

  it("loads a 16-bit task, and saves into one", () => {
    const m = machine();
    fill16(m, OTHER_TSS);
    m.descriptor(OTHER, OTHER_TSS, 0x2b, 0x81);
    put(m, 0x4000, ...jump(TASK));
    m.code(...jump(), HLT);
    expect(m.runToHandler()).toBe(-1);
    expect(m.rip).toBe(CODE + 8);
    expect([typeOf(m, TASK), typeOf(m, OTHER)]).toEqual([11, 1]);
    expect(half(m, OTHER_TSS + 0x0e)).toBe(0x4007);
    expect(half(m, OTHER_TSS + 0x12)).toBe(0x2222);
  });

  it("enters user privilege and virtual-8086 mode", () => {
    const user = machine({ cs: USER_CODE_32, ss: USER_DATA, ds: USER_DATA });
    put(user, OTHER_CODE, HLT);
    user.code(...jump());
    expect(user.runToHandler()).toBe(GP);
    expect(user.stacked(2)).toBe(BigInt(USER_CODE_32));
    const virtual = machine({ flags: 2 | 0x2_0000, rip: 0, cs: OTHER_CODE >> 4, ss: 0x1000, ds: 0x1234 });
    virtual.code(...jump());
    expect(virtual.runToHandler()).toBe(GP);
    expect(virtual.stacked(2)).toBe(BigInt(OTHER_CODE >> 4));
    expect(Number(virtual.stacked(3)) & 0x2_0000).toBe(0x2_0000);
  });

  it("loads the LDT first, and segments from it", () => {
    const m = machine({ ldt: LDT_SELECTOR, ds: 4 });
    m.descriptor(LDT_SELECTOR, DATA, 0xf, 0x82);
    m.memory.setBigUint64(DATA, 0x00cf_9300_0000_ffffn, true);
    m.code(...jump());
    expect(m.runToHandler()).toBe(-1);
    expect([m.selector(LDTR), m.selector(DS)]).toEqual([LDT_SELECTOR, 4]);
  });

  it("traps before the first instruction of a task with the T bit", () => {
    const m = machine({ trap: true });
    m.code(...jump());
    expect(m.runToHandler()).toBe(1);
    expect(m.stacked(0)).toBe(BigInt(OTHER_CODE));
    expect(m.engine.get64(state.dr + 48) & 0x8000n).toBe(0x8000n);
  });
});

describe("nested tasks", () => {
  it("go back by IRET, which the flag NT makes a task switch", () => {
    const m = machine();
    put(m, OTHER_CODE, 0xbb, ...imm32(7), IRET, 0xeb, 0xf8);
    m.code(...call(), 0x89, 0xc1, ...call(), HLT);
    m.engine.setReg(RAX, 5n);
    expect(m.runToHandler()).toBe(-1);
    expect(m.rip).toBe(CODE + 17);
    expect(m.engine.reg(RAX)).toBe(5n);
    expect(m.selector(TR)).toBe(TASK);
    expect([typeOf(m, TASK), typeOf(m, OTHER)]).toEqual([11, 9]);
    expect(half(m, OTHER_TSS)).toBe(TASK);
    expect(word(m, OTHER_TSS + 0x20)).toBe(OTHER_CODE + 6);
    expect(word(m, OTHER_TSS + 0x34)).toBe(7);
    expect(word(m, OTHER_TSS + 0x24) & NT).toBe(0);
    expect(m.engine.readFlags() & NT).toBe(0);
  });

  it("begin by task gates of the interrupt table, with the error code on the new stack", () => {
    const m = machine();
    taskGate(m, IDT + GP * 8, OTHER);
    // mov ax, 0x1230; mov ds, ax
    m.code(0x66, 0xb8, 0x30, 0x12, 0x8e, 0xd8);
    expect(m.runToHandler()).toBe(-1);
    expect(m.rip).toBe(OTHER_CODE + 1);
    expect(m.stacked(0)).toBe(0x1230n);
    expect(m.rsp).toBe(OTHER_STACK - 4);
    expect(word(m, TSS + 0x20)).toBe(CODE + 4);
    // A fault: RF
    expect(word(m, TSS + 0x24)).toBe(0x1_0002);
    expect(m.engine.readFlags() & NT).toBe(NT);
    expect(half(m, OTHER_TSS)).toBe(TASK);
  });

  it("begin by INT n, whose gate says who may", () => {
    const m = machine();
    taskGate(m, IDT + 0x80 * 8, OTHER, 3);
    put(m, OTHER_CODE, IRET);
    m.code(0xcd, 0x80, HLT);
    expect(m.runToHandler()).toBe(-1);
    expect(m.rip).toBe(CODE + 3);
    const user = machine();
    taskGate(user, IDT + 0x80 * 8, OTHER, 0);
    user.enterUser();
    user.code(0xcd, 0x80);
    expect(user.runToHandler()).toBe(GP);
    expect(user.stacked(0)).toBe(BigInt(0x80 * 8 + 2));
  });

  it("save where a CALL was made from user code, and come back to it", () => {
    const m = machine();
    m.descriptor(OTHER, OTHER_TSS, 0x67, 0xe9);
    m.enterUser();
    put(m, OTHER_CODE, IRET);
    m.gate(0x81, 14, 3);
    m.code(...call(OTHER | 3), 0xcd, 0x81);
    expect(m.runToHandler()).toBe(0x81);
    expect(m.stacked(1)).toBe(BigInt(USER_CODE_32));
  });
});

describe("faults of the old task, which has not changed", () => {
  function faults(m: SystemMachine, code: number[], vector: number, error: number): void {
    const tr = m.selector(TR);
    m.code(...code);
    expect(m.runToHandler()).toBe(vector);
    expect(m.stacked(0)).toBe(BigInt(error));
    expect(m.stacked(1)).toBe(BigInt(CODE));
    expect(m.selector(TR)).toBe(tr);
  }
  it("#GP for a busy task, and for what is no task", () => {
    const busy = machine();
    busy.descriptor(OTHER, OTHER_TSS, 0x67, 0x8b);
    faults(busy, jump(), GP, OTHER);
    faults(machine(), call(TASK), GP, TASK);
    const gate = machine();
    taskGate(gate, GDT + GATE, KERNEL_DATA);
    faults(gate, jump(GATE), GP, KERNEL_DATA);
    taskGate(gate, GDT + GATE, OTHER | 4);
    faults(gate, jump(GATE), GP, OTHER | 4);
  });
  it("#GP where the privilege is not enough", () => {
    const m = machine();
    m.descriptor(OTHER, OTHER_TSS, 0x67, 0xa9);
    m.enterUser();
    faults(m, jump(), GP, OTHER);
  });
  it("#NP for a task or gate that is not present", () => {
    const task = machine();
    task.descriptor(OTHER, OTHER_TSS, 0x67, 0x09);
    faults(task, jump(), NP, OTHER);
    const gate = machine();
    taskGate(gate, GDT + GATE, OTHER);
    gate.ram[GDT + GATE + 5] &= 0x7f;
    faults(gate, call(GATE), NP, GATE);
  });
  it("#TS for a segment that is too short", () => {
    const m = machine();
    m.descriptor(OTHER, OTHER_TSS, 0x66, 0x89);
    faults(m, jump(), TS, OTHER);
    m.descriptor(OTHER, OTHER_TSS, 0x2a, 0x81);
    faults(m, jump(), TS, OTHER);
  });
  it("#TS for an IRET to what is no busy task", () => {
    const m = machine();
    m.engine.setFlags(2 | NT);
    m.memory.setUint16(TSS, OTHER, true);
    faults(m, [IRET], TS, OTHER);
  });
  it("with the EXT bit for an event of the processor", () => {
    const m = machine();
    taskGate(m, IDT + 6 * 8, OTHER);
    m.descriptor(OTHER, OTHER_TSS, 0x66, 0x89);
    m.code(0x0f, 0x0b);
    expect(m.runToHandler()).toBe(TS);
    expect(m.stacked(0)).toBe(BigInt(OTHER | 1));
  });
});

describe("faults of the new task, at its first instruction", () => {
  const cases: readonly [string, Task, number, number][] = [
    ["CS is data", { cs: KERNEL_DATA }, TS, KERNEL_DATA],
    ["CS is null", { cs: 0 }, TS, 0],
    ["CS has another privilege", { cs: USER_CODE_32 & ~3 }, TS, USER_CODE_32 & ~3],
    ["DS is beyond its table", { ds: 0x1000 }, TS, 0x1000],
    ["DS is a system segment", { ds: TASK }, TS, TASK],
    ["the LDT is none", { ldt: KERNEL_DATA }, TS, KERNEL_DATA],
  ];
  it.each(cases)("%s", (_name, task, vector, error) => {
    const m = machine(task);
    fill32(m, 0x3200, { rip: HANDLERS + vector * 16 });
    m.descriptor(GATE, 0x3200, 0x67, 0x89);
    taskGate(m, IDT + vector * 8, GATE);
    m.code(...jump());
    expect(m.runToHandler()).toBe(vector);
    expect(m.stacked(0)).toBe(BigInt(error));
    expect(half(m, 0x3200)).toBe(OTHER);
    expect(word(m, OTHER_TSS + 0x20)).toBe(OTHER_CODE);
  });
  it("#NP and #SS for segments that are not present, #GP past the limit of CS", () => {
    for (const [selector, access, vector, task] of [
      [LDT_SELECTOR, 0xc01b, NP, { cs: LDT_SELECTOR }],
      [LDT_SELECTOR, 0xc013, SS_FAULT, { ss: LDT_SELECTOR }],
      [LDT_SELECTOR, 0xc013, NP, { ds: LDT_SELECTOR }],
    ] as const) {
      const m = machine(task);
      m.descriptor(selector, 0, 0xffff_ffff, access);
      fill32(m, 0x3200, { rip: HANDLERS + vector * 16 });
      m.descriptor(GATE, 0x3200, 0x67, 0x89);
      taskGate(m, IDT + vector * 8, GATE);
      m.code(...jump());
      expect(m.runToHandler()).toBe(vector);
      expect(m.stacked(0)).toBe(BigInt(selector));
    }
    const m = machine({ cs: LDT_SELECTOR });
    m.descriptor(LDT_SELECTOR, 0, 0xff, 0x409b);
    m.code(...jump());
    expect(m.runToHandler()).toBe(GP);
    expect(m.stacked(0)).toBe(0n);
    expect(m.stacked(1)).toBe(BigInt(OTHER_CODE));
  });
});

it("has no task switches in long mode", () => {
  const m = createSystemMachine(64);
  m.engine.setFlags(2 | NT);
  m.code(0x48, IRET);
  expect(m.runToHandler()).toBe(GP);
});
