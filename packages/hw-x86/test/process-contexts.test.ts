/**
 * Process-context identifiers: which translations a program may rely on to be dropped, and which are kept (Intel SDM Vol. 3A, Operations
 * that Invalidate TLBs and Paging-Structure Caches).
 */
import { describe, expect, it } from "vitest";
import { RAX, RBX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import { FLAT_MODEL } from "./flat-machine.ts";
import { mapLong } from "./page-tables.ts";
import { createSystemMachine, DATA, imm64, type SystemMachine } from "./system-machine.ts";

const PRESENT = 1n;
const WRITE = 2n;
const USER = 4n;
const GLOBAL = 0x100n;
const PGE = 0x80n;
const PCIDE = 0x2_0000n;
const PKE = 0x40_0000n;
const NO_FLUSH = 1n << 63n;
const PF = 14;
/** In a part of the address space that each of the two has tables of its own for, and in one whose tables they share. */
const OWN = 5n << 39n;
const SHARED = 6n << 39n;
const DESCRIPTOR = DATA + 0x800;
const INVPCID = [0x66, 0x0f, 0x38, 0x82, 0x03]; // rax, [rbx]
const INVLPG = [0x0f, 0x01, 0x39]; // [rcx]
const MOV_CR3 = [0x0f, 0x22, 0xd8]; // rax

type Who = 1 | 2;
interface Processes extends SystemMachine {
  /** Maps OWN of one of them, or SHARED of both; the address of the last entry. */
  map(who: Who, linear: bigint, physical: number, rights?: bigint): number;
  turnTo(who: Who, keep?: boolean): void;
  /** What is read there; undefined: page fault. */
  load(linear: bigint): bigint | undefined;
  invpcid(type: number, identifier: number, linear?: bigint): void;
  invlpg(linear: bigint): void;
}

function machine(cr4 = 0n): Processes {
  const m = createSystemMachine(64, { cr4Allowed: FLAT_MODEL.cr4Allowed | PGE | PKE });
  const first = Number(m.engine.get64(state.cr3));
  const roots: Record<Who, number> = { 1: first, 2: 0x20_0000 };
  m.engine.set64(state.cr4, m.engine.get64(state.cr4) | PCIDE | PGE | cr4);
  // Tables that both have
  mapLong(m, SHARED, BigInt(DATA), 0n);
  m.ram.copyWithin(roots[2], first, first + 4096);
  m.memory.setBigUint64(DATA, 1n, true);
  m.memory.setBigUint64(DATA + 0x1000, 2n, true);
  const run = (...code: number[]): void => {
    m.code(...code, 0xf4);
    expect(m.runToHandler()).toBe(-1);
  };
  const processes: Processes = Object.assign(m, {
    map(who: Who, linear: bigint, physical: number, rights = PRESENT | WRITE): number {
      const now = m.engine.get64(state.cr3);
      m.engine.set64(state.cr3, BigInt(roots[who]));
      const entries = mapLong(m, linear, BigInt(physical), rights);
      m.engine.set64(state.cr3, now);
      return entries[3];
    },
    turnTo(who: Who, keep = true): void {
      m.engine.setReg(RAX, BigInt(roots[who] | who) | (keep ? NO_FLUSH : 0n));
      run(...MOV_CR3);
    },
    load(linear: bigint): bigint | undefined {
      m.code(0x48, 0xa1, ...imm64(linear), 0xf4);
      const vector = m.runToHandler();
      if (vector === PF) m.engine.setReg(4, 0x2_0000n);
      else expect(vector).toBe(-1);
      return vector === PF ? undefined : m.engine.reg(RAX);
    },
    invpcid(type: number, identifier: number, linear = 0n): void {
      m.memory.setBigUint64(DESCRIPTOR, BigInt(identifier), true);
      m.memory.setBigUint64(DESCRIPTOR + 8, linear, true);
      m.engine.setReg(RAX, BigInt(type));
      m.engine.setReg(RBX, BigInt(DESCRIPTOR));
      run(...INVPCID);
    },
    invlpg(linear: bigint): void {
      m.engine.setReg(RCX, linear);
      run(...INVLPG);
    },
  });
  m.engine.set64(state.cr3, BigInt(roots[1] | 1));
  m.engine.updateTags();
  return processes;
}

/** The first process has read OWN, its entry is gone from memory since, and the second one runs. */
function away(linear = OWN, rights = PRESENT | WRITE): Processes {
  const m = machine();
  const entry = m.map(1, linear, DATA, rights);
  expect(m.load(linear)).toBe(1n);
  m.memory.setBigUint64(entry, 0n, true);
  m.turnTo(2, false);
  return m;
}

describe("MOV to CR3", () => {
  it("keeps each identifier's translations apart", () => {
    const m = machine();
    m.map(1, OWN, DATA);
    m.map(2, OWN, DATA + 0x1000);
    for (let turn = 0; turn < 3; turn++) {
      expect(m.load(OWN)).toBe(1n);
      m.turnTo(2);
      expect(m.load(OWN)).toBe(2n);
      m.turnTo(1);
    }
  });

  it.each([true, false])("keeps them apart when they have had only global pages in common before, bit 63 %s", (keep) => {
    const m = machine();
    m.map(1, SHARED, DATA, PRESENT | WRITE | GLOBAL);
    // Not the page of that number, so that either's entry leaves the other's alone
    const own = OWN + 0x1000n;
    m.map(1, own, DATA);
    m.map(2, own, DATA + 0x1000);
    // Each has been and gone without data of its own
    for (const who of [2, 1, 2, 1, 2] as const) {
      m.turnTo(who, keep);
      expect(m.load(SHARED)).toBe(1n);
    }
    for (const who of [2, 1, 2, 1, 1, 2] as const) {
      m.turnTo(who, keep);
      expect([m.load(own), m.load(SHARED)]).toEqual([BigInt(who), 1n]);
    }
  });

  it("with bit 63 finds what the identifier left, and without it drops that", () => {
    const kept = away();
    kept.turnTo(1);
    expect(kept.load(OWN)).toBe(1n);
    kept.turnTo(1, false);
    expect(kept.load(OWN)).toBeUndefined();
    const dropped = away();
    dropped.turnTo(1, false);
    expect(dropped.load(OWN)).toBeUndefined();
    dropped.turnTo(2);
    dropped.turnTo(1);
    expect(dropped.load(OWN)).toBeUndefined();
  });

  it("keeps global pages either way", () => {
    const m = away(SHARED, PRESENT | WRITE | GLOBAL);
    expect(m.load(SHARED)).toBe(1n);
    m.turnTo(1, false);
    expect(m.load(SHARED)).toBe(1n);
  });
});

describe("what drops translations of an identifier that is not in use", () => {
  const drops: [string, (m: Processes) => void][] = [
    ["INVPCID of an address", (m) => m.invpcid(0, 1, OWN)],
    ["INVPCID of the identifier", (m) => m.invpcid(1, 1)],
    ["INVPCID of everything", (m) => m.invpcid(2, 0)],
    ["INVPCID of everything but global pages", (m) => m.invpcid(3, 0)],
    [
      "MOV to CR4 that changes PGE",
      (m) => {
        m.engine.setReg(RAX, m.engine.get64(state.cr4) ^ PGE);
        m.code(0x0f, 0x22, 0xe0, 0xf4);
        expect(m.runToHandler()).toBe(-1);
      },
    ],
    [
      "MOV to CR4 that ends identifiers",
      (m) => {
        for (let turn = 0; turn < 2; turn++) {
          // Identifiers begin where CR3 bits 11:0 are clear
          if (turn === 1) m.engine.set64(state.cr3, m.engine.get64(state.cr3) & ~0xfffn);
          m.engine.setReg(RAX, m.engine.get64(state.cr4) ^ PCIDE);
          m.code(0x0f, 0x22, 0xe0, 0xf4);
          expect(m.runToHandler()).toBe(-1);
        }
      },
    ],
  ];
  it.each(drops)("%s", (_name, drop) => {
    const m = away();
    drop(m);
    m.turnTo(1);
    expect(m.load(OWN)).toBeUndefined();
  });

  it("INVPCID of another identifier does not", () => {
    const m = away();
    m.invpcid(0, 3, OWN);
    m.invpcid(1, 3);
    m.invpcid(1, 2);
    m.turnTo(1);
    expect(m.load(OWN)).toBe(1n);
  });

  it.each([
    ["INVLPG", (m: Processes) => m.invlpg(SHARED)],
    ["INVPCID of everything", (m: Processes) => m.invpcid(2, 0)],
  ] as const)("%s, for a global page", (_name, drop) => {
    const m = away(SHARED, PRESENT | WRITE | GLOBAL);
    drop(m);
    m.turnTo(1);
    expect(m.load(SHARED)).toBeUndefined();
  });

  it("a write of PKRU, for what its rights allowed", () => {
    const m = machine(PKE);
    m.map(1, OWN, DATA, PRESENT | WRITE | USER | (1n << 59n));
    expect(m.load(OWN)).toBe(1n);
    m.turnTo(2);
    for (const register of [RCX, RDX]) m.engine.setReg(register, 0n);
    m.engine.setReg(RAX, 4n); // access-disable of key 1
    m.code(0x0f, 0x01, 0xef, 0xf4);
    expect(m.runToHandler()).toBe(-1);
    m.turnTo(1);
    expect(m.load(OWN)).toBeUndefined();
  });
});

describe("code", () => {
  /** mov eax, value; ret */
  const value = (m: SystemMachine, at: number, number: number): void => m.ram.set([0xb8, number, 0, 0, 0, 0xc3], at);
  function call(m: SystemMachine, linear: bigint): bigint {
    m.engine.setReg(RBX, linear);
    m.code(0xff, 0xd3, 0xf4);
    expect(m.runToHandler()).toBe(-1);
    return m.engine.reg(RAX);
  }
  function twoPages(rights = PRESENT): { m: Processes; entry: number; linear: bigint } {
    const m = machine();
    value(m, DATA + 0x2000, 7);
    value(m, DATA + 0x3000, 8);
    const linear = (rights & GLOBAL) !== 0n ? SHARED : OWN;
    const entry = m.map(1, linear, DATA + 0x2000, rights);
    expect(call(m, linear)).toBe(7n);
    m.turnTo(2, false);
    m.memory.setBigUint64(entry, BigInt(DATA + 0x3000) | rights, true);
    return { m, entry, linear };
  }

  it.each([
    ["INVPCID of an address", (m: Processes) => m.invpcid(0, 1, OWN)],
    ["INVPCID of everything but global pages", (m: Processes) => m.invpcid(3, 0)],
  ] as const)("is another one after %s of its identifier", (_name, drop) => {
    const { m } = twoPages();
    drop(m);
    m.turnTo(1);
    expect(call(m, OWN)).toBe(8n);
  });

  it("in a global page is another one after INVLPG under another identifier", () => {
    const { m } = twoPages(PRESENT | GLOBAL);
    m.invlpg(SHARED);
    expect(call(m, SHARED)).toBe(8n);
    m.turnTo(1);
    expect(call(m, SHARED)).toBe(8n);
  });

  it("is each identifier's own", () => {
    const m = machine();
    value(m, DATA + 0x2000, 7);
    value(m, DATA + 0x3000, 8);
    m.map(1, OWN, DATA + 0x2000, PRESENT);
    m.map(2, OWN, DATA + 0x3000, PRESENT);
    for (let turn = 0; turn < 3; turn++) {
      expect(call(m, OWN)).toBe(7n);
      m.turnTo(2);
      expect(call(m, OWN)).toBe(8n);
      m.turnTo(1);
    }
  });
});

it("virtual CPUs that take turns have identifiers of their own", () => {
  const m = machine();
  m.map(1, OWN, DATA);
  m.map(2, OWN, DATA + 0x1000);
  const cr3: Record<number, bigint> = { 21: m.engine.get64(state.cr3), 22: m.engine.get64(state.cr3) };
  const enter = (tag: number): void => {
    cr3[m.guest.translationTag] = m.engine.get64(state.cr3);
    m.guest.translationTag = tag;
    m.engine.set64(state.cr3, cr3[tag]);
    m.engine.updateTags();
  };
  enter(21);
  for (let turn = 0; turn < 4; turn++) {
    m.turnTo(turn % 2 === 0 ? 2 : 1);
    expect(m.load(OWN)).toBe(turn % 2 === 0 ? 2n : 1n);
    enter(22);
    expect(m.load(OWN)).toBe(1n);
    enter(21);
    expect(m.load(OWN)).toBe(turn % 2 === 0 ? 2n : 1n);
  }
});
