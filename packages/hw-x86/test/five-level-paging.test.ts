/** CR4.LA57: five levels of paging tables, and linear addresses of 57 bits (Intel SDM Vol. 3A, 4-Level Paging and 5-Level Paging). */
import { describe, expect, it } from "vitest";
import {
  CS,
  FS,
  GS,
  RAX,
  RBX,
  RCX,
  RSP,
  SEG_ACCESS,
  SEG_BASE,
  SEG_SELECTOR,
  segmentOffset,
  state,
} from "../src/engine/cpu-state.ts";
import { FLAT_MODEL } from "./flat-machine.ts";
import {
  CODE,
  createSystemMachine,
  DATA,
  imm32,
  imm64,
  KERNEL_CODE,
  KERNEL_CODE_32,
  KERNEL_DATA,
  KERNEL_STACK,
  type SystemMachine,
  USER_STACK,
} from "./system-machine.ts";

const LA57 = 0x1000n;
const FSGSBASE = 0x1_0000n;
const SS_FAULT = 12;
const GP = 13;
const PF = 14;
const HLT = 0xf4;
/** Present, writable, user; accessed and dirty. */
const OPEN = 7n;
const ACCESSED = 0x20n;
const DIRTY = 0x40n;
const LARGE = 0x80n;
const TABLES = 0x10_0000;
/** Addresses that have 57 bits and not 48, in either half, and the first that has more. */
const LOWER = (5n << 48n) | 0x40_0000_0000n;
const UPPER = 0xff11_0000_0000_0000n;
const BEYOND = 1n << 56n;

const wide = (mode: 16 | 32 | 64 = 64): SystemMachine =>
  createSystemMachine(mode, { cr4Allowed: FLAT_MODEL.cr4Allowed | LA57, linearAddressBits: 57 });

interface FiveLevels extends SystemMachine {
  /** Maps a page of 4 KiB; addresses of the five entries, uppermost first. */
  map(linear: bigint, physical: bigint): number[];
}

/** A machine with a fifth level above its tables, as if long mode had been entered so. */
function machine(): FiveLevels {
  const m = wide();
  let next = TABLES + 4096;
  m.memory.setBigUint64(TABLES, m.engine.get64(state.cr3) | OPEN, true);
  m.engine.set64(state.cr3, BigInt(TABLES));
  m.engine.set64(state.cr4, m.engine.get64(state.cr4) | LA57);
  m.engine.updateTags();
  m.memory.setBigUint64(DATA, 0x1234n, true);
  const map = (linear: bigint, physical: bigint): number[] => {
    const entries: number[] = [];
    let table = TABLES;
    for (let level = 5; level >= 1; level--) {
      const at = table + Number((linear >> BigInt(3 + 9 * level)) & 511n) * 8;
      entries.push(at);
      if (level === 1) m.memory.setBigUint64(at, physical | OPEN, true);
      else if (m.memory.getBigUint64(at, true) === 0n) {
        m.memory.setBigUint64(at, BigInt(next) | OPEN, true);
        next += 4096;
      }
      table = Number(m.memory.getBigUint64(at, true) & 0xf_ffff_ffff_f000n);
    }
    return entries;
  };
  return Object.assign(m, { map });
}

function outcome(m: SystemMachine, ...code: number[]): [number, number] | undefined {
  m.code(...code, HLT);
  const vector = m.runToHandler(1000);
  return vector < 0 ? undefined : [vector, Number(m.stacked(0))];
}
const load = (address: bigint): number[] => [0x48, 0xa1, ...imm64(address)];
const store = (address: bigint): number[] => [0x48, 0xa3, ...imm64(address)];

describe("five levels of tables", () => {
  it.each([
    ["lower", LOWER],
    ["upper", UPPER],
  ] as const)("lead to pages of the %s half, and are marked", (_name, linear) => {
    const m = machine();
    const entries = m.map(linear, BigInt(DATA));
    const marks = (): bigint[] => entries.map((at) => m.memory.getBigUint64(at, true) & (ACCESSED | DIRTY));
    expect(outcome(m, ...load(linear))).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(0x1234n);
    expect(marks()).toEqual([ACCESSED, ACCESSED, ACCESSED, ACCESSED, ACCESSED]);
    m.engine.setReg(RAX, 0x5678n);
    expect(outcome(m, ...store(linear))).toBeUndefined();
    expect(m.memory.getBigUint64(DATA, true)).toBe(0x5678n);
    expect(marks()).toEqual([ACCESSED, ACCESSED, ACCESSED, ACCESSED, ACCESSED | DIRTY]);
  });

  it("fault where the uppermost entry is not present, or says that it maps a page", () => {
    const m = machine();
    expect(outcome(m, ...load(LOWER))).toEqual([PF, 0]);
    expect(m.engine.get64(state.cr2)).toBe(LOWER);
    const [first] = m.map(LOWER, BigInt(DATA));
    m.memory.setBigUint64(first, m.memory.getBigUint64(first, true) | LARGE, true);
    expect(outcome(m, ...load(LOWER))).toEqual([PF, 9]);
  });

  it("tell addresses apart that four levels do not", () => {
    const m = machine();
    m.map(LOWER, BigInt(DATA));
    m.map(LOWER ^ (1n << 48n), BigInt(DATA + 0x1000));
    m.memory.setBigUint64(DATA + 0x1000, 0x4321n, true);
    expect(outcome(m, ...load(LOWER), 0x48, 0x89, 0xc3, ...load(LOWER ^ (1n << 48n)))).toBeUndefined();
    expect([m.engine.reg(RBX), m.engine.reg(RAX)]).toEqual([0x1234n, 0x4321n]);
  });

  it.each([
    ["INVLPG", [0x0f, 0x01, 0x39]], // [rcx]
    ["INVPCID", [0x66, 0x0f, 0x38, 0x82, 0x13]], // rdx, [rbx]
  ] as const)("%s drops what they led to", (_name, code) => {
    const m = machine();
    const [, , , , last] = m.map(LOWER, BigInt(DATA));
    m.engine.setReg(RCX, LOWER);
    m.engine.setReg(RBX, BigInt(DATA + 0x800));
    m.memory.setBigUint64(DATA + 0x808, LOWER, true);
    expect(outcome(m, ...load(LOWER))).toBeUndefined();
    m.memory.setBigUint64(last, 0n, true);
    expect(outcome(m, ...load(LOWER))).toBeUndefined();
    expect(outcome(m, ...code, ...load(LOWER))).toEqual([PF, 0]);
  });
});

describe("canonical addresses", () => {
  it("have 57 bits for data", () => {
    const m = machine();
    expect(outcome(m, ...load(BEYOND))).toEqual([GP, 0]);
    expect(outcome(m, ...load(BEYOND - 8n))).toEqual([PF, 0]);
    expect(outcome(m, ...load(-BEYOND - 8n))).toEqual([GP, 0]);
    expect(outcome(m, ...load(-BEYOND))).toEqual([PF, 0]);
    // Across the edge
    expect(outcome(m, ...load(BEYOND - 4n))).toEqual([GP, 0]);
    m.gate(SS_FAULT, 14, 0, KERNEL_CODE, 1);
    m.engine.setReg(RSP, BEYOND + 8n);
    expect(outcome(m, 0x50)).toEqual([SS_FAULT, 0]);
  });

  const frame = (m: SystemMachine, ...words: bigint[]): void => {
    words.forEach((word, index) => {
      m.memory.setBigUint64(KERNEL_STACK - 64 + index * 8, word, true);
    });
    m.engine.setReg(RSP, BigInt(KERNEL_STACK - 64));
  };
  const branches: [string, number[]][] = [
    ["JMP", [0xff, 0xe0]],
    ["CALL", [0xff, 0xd0]],
    ["RET", [0xc3]],
    ["far RET", [0x48, 0xcb]],
    ["IRET", [0x48, 0xcf]],
  ];
  const words = (name: string, target: bigint): bigint[] =>
    name === "IRET"
      ? [target, BigInt(KERNEL_CODE), 2n, BigInt(USER_STACK), BigInt(KERNEL_DATA)]
      : [target, BigInt(KERNEL_CODE)];
  it.each(branches)("have 57 bits for %s", (name, code) => {
    for (const target of [LOWER + 0x100n, UPPER + 0x100n]) {
      const m = machine();
      m.map(target & ~0xfffn, BigInt(DATA));
      m.ram[DATA + 0x100] = HLT;
      m.engine.setReg(RAX, target);
      frame(m, ...words(name, target));
      m.code(...code);
      m.engine.run(100);
      expect(m.engine.get64(state.rip)).toBe(target + 1n);
    }
    const refused = machine();
    refused.engine.setReg(RAX, BEYOND);
    frame(refused, ...words(name, BEYOND));
    expect(outcome(refused, ...code)).toEqual([GP, 0]);
    expect(refused.stacked(1)).toBe(BigInt(CODE));
    const narrow = wide();
    narrow.engine.setReg(RAX, LOWER);
    frame(narrow, ...words(name, LOWER));
    expect(outcome(narrow, ...code)).toEqual([GP, 0]);
    expect(narrow.stacked(1)).toBe(BigInt(CODE));
  });

  it("run on in a loop that is hot", () => {
    const m = machine();
    m.map(UPPER, BigInt(DATA));
    // At UPPER: dec rcx; jnz +1; hlt; jmp rax (back to itself)
    m.ram.set([0x48, 0xff, 0xc9, 0x75, 0x01, HLT, 0xff, 0xe0], DATA);
    m.engine.setReg(RAX, UPPER);
    m.engine.setReg(RCX, 500n);
    m.code(0xff, 0xe0);
    m.engine.run(5000);
    expect(m.engine.get64(state.rip)).toBe(UPPER + 6n);
    expect(m.engine.reg(RCX)).toBe(0n);
  });
});

describe("what the processor keeps", () => {
  const msrs = [0x175, 0x176, 0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102];
  const wrmsr = (index: number, value: bigint): number[] => [
    ...[0xb9, ...imm32(index)],
    ...[0xb8, ...imm32(Number(BigInt.asUintN(32, value)))],
    ...[0xba, ...imm32(Number(BigInt.asUintN(64, value) >> 32n))],
    ...[0x0f, 0x30],
  ];
  const all = (m: SystemMachine, value: bigint): ([number, number] | undefined)[] => [
    ...msrs.map((index) => outcome(m, ...wrmsr(index, value))),
    ...[0x10, 0x18].map((modrm) => {
      m.memory.setBigUint64(DATA + 2, value, true);
      m.memory.setUint16(DATA, 0xfff, true);
      const [gdtr, idtr] = [m.engine.get64(state.gdtrBase), m.engine.get64(state.idtrBase)];
      m.engine.setReg(RAX, BigInt(DATA));
      // lgdt, lidt: with nothing to deliver afterwards
      m.code(0x0f, 0x01, modrm);
      m.engine.run(1);
      const refused = m.guest.exceptions.at(-1);
      m.guest.exceptions.length = 0;
      m.engine.set64(state.gdtrBase, gdtr);
      m.engine.set64(state.idtrBase, idtr);
      return refused === undefined ? undefined : ([refused.vector, refused.errorCode ?? 0] as [number, number]);
    }),
    ...[2, 3].map((digit) => {
      m.engine.set64(state.cr4, m.engine.get64(state.cr4) | FSGSBASE);
      m.engine.setReg(RAX, value);
      return outcome(m, 0xf3, 0x48, 0x0f, 0xae, 0xc0 | (digit << 3));
    }),
  ];

  it("has its own width, whatever the paging mode", () => {
    for (const m of [wide(), machine()]) {
      m.guest.exceptions.length = 0;
      expect(new Set(all(m, UPPER))).toEqual(new Set([undefined]));
      expect(m.engine.get64(segmentOffset(GS) + SEG_BASE)).toBe(UPPER);
      for (const refused of all(m, BEYOND)) expect(refused).toEqual([GP, 0]);
    }
    const narrow = createSystemMachine(64);
    for (const refused of all(narrow, UPPER)) expect(refused).toEqual([GP, 0]);
  });

  it("is checked by the paging mode where it is used", () => {
    const m = wide();
    m.engine.set64(segmentOffset(FS) + SEG_BASE, UPPER);
    m.engine.updateSegments();
    // mov rax, fs:[0]
    expect(outcome(m, 0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0)).toEqual([GP, 0]);
  });
});

describe("CR4.LA57", () => {
  const MOV_CR4 = [0x0f, 0x22, 0xe0];
  it("cannot change in long mode", () => {
    for (const m of [wide(), machine()]) {
      m.engine.setReg(RAX, m.engine.get64(state.cr4) ^ LA57);
      expect(outcome(m, ...MOV_CR4)).toEqual([GP, 0]);
      m.engine.set32(segmentOffset(CS) + SEG_ACCESS, 0xc09b);
      m.engine.set32(segmentOffset(CS) + SEG_SELECTOR, KERNEL_CODE_32);
      m.engine.updateSegments();
      m.engine.setReg(RAX, m.engine.get64(state.cr4) ^ LA57);
      expect(outcome(m, ...MOV_CR4)).toEqual([GP, 0]);
    }
  });

  it("can outside it, where it means nothing, on processors that have it", () => {
    const m = wide(32);
    m.engine.setReg(RAX, LA57);
    expect(outcome(m, ...MOV_CR4)).toBeUndefined();
    expect(m.engine.get64(state.cr4)).toBe(LA57);
    const narrow = createSystemMachine(32);
    narrow.engine.setReg(RAX, LA57);
    expect(outcome(narrow, ...MOV_CR4)).toEqual([GP, 0]);
  });
});
