import { describe, expect, it } from "vitest";
import { CS, RAX, RBX, RCX, segmentOffset, state } from "../src/engine/cpu-state.ts";
import { CR0_WP, mapLong, mapNarrow, mapPae, NO_EXECUTE } from "./page-tables.ts";
import { CODE, createSystemMachine, DATA, imm64, type SystemMachine } from "./system-machine.ts";

const PRESENT = 1n;
const WRITE = 2n;
const USER = 4n;
const ACCESSED = 0x20n;
const DIRTY = 0x40n;
const GLOBAL = 0x100n;

/** Linear page for tests, mapped by a table of its own: 256 GiB. */
const AREA = 0x40_0000_0000n;

function loadRax(address: bigint): number[] {
  return [0x48, 0xa1, ...imm64(address)];
}
function storeAl(address: bigint): number[] {
  return [0xa2, ...imm64(address)];
}

/** Error code of the page fault that it ended in; undefined when there was none. */
function faultOf(m: SystemMachine, ...code: number[]): number | undefined {
  m.code(...code, 0xf4);
  return m.runToHandler() === 14 ? Number(m.stacked(0)) : undefined;
}

describe("4-level paging", () => {
  it("sets accessed in every entry on a read, dirty in the last on a write", () => {
    const m = createSystemMachine(64);
    const entries = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
    m.memory.setBigUint64(DATA, 0x1234n, true);
    expect(faultOf(m, ...loadRax(AREA))).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(0x1234n);
    const bits = () => entries.map((at) => m.memory.getBigUint64(at, true) & (ACCESSED | DIRTY));
    expect(bits()).toEqual([ACCESSED, ACCESSED, ACCESSED, ACCESSED]);
    expect(faultOf(m, ...storeAl(AREA))).toBeUndefined();
    expect(bits()).toEqual([ACCESSED, ACCESSED, ACCESSED, ACCESSED | DIRTY]);
    expect(m.memory.getBigUint64(DATA, true)).toBe(0x1234n);
  });

  it("sets dirty again after software cleared it and flushed", () => {
    const m = createSystemMachine(64);
    const entries = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
    faultOf(m, ...storeAl(AREA));
    m.memory.setBigUint64(entries[3], m.memory.getBigUint64(entries[3], true) & ~DIRTY, true);
    // mov rbx, AREA; invlpg [rbx]; mov al, ... store
    faultOf(m, 0x48, 0xbb, ...imm64(AREA), 0x0f, 0x01, 0x3b, ...storeAl(AREA));
    expect(m.memory.getBigUint64(entries[3], true) & DIRTY).toBe(DIRTY);
  });

  it.each([
    ["supervisor read of an absent page", 0n, false, loadRax, 0],
    ["supervisor write of an absent page", 0n, false, storeAl, 2],
    ["user read of an absent page", 0n, true, loadRax, 4],
    ["user read of a supervisor page", PRESENT | WRITE, true, loadRax, 5],
    ["user write of a supervisor page", PRESENT | WRITE, true, storeAl, 7],
    ["user write of a read-only page", PRESENT | USER, true, storeAl, 7],
    ["supervisor write of a read-only page with WP", PRESENT, false, storeAl, 3],
    ["user read of a user page", PRESENT | USER, true, loadRax, undefined],
    ["user write of a user page", PRESENT | USER | WRITE, true, storeAl, undefined],
    ["supervisor read of a user page", PRESENT | USER, false, loadRax, undefined],
  ] as const)("%s", (_name, rights, isUser, access, error) => {
    const m = createSystemMachine(64);
    mapLong(m, AREA, BigInt(DATA), rights);
    if (isUser) m.enterUser();
    m.code(...access(AREA), 0xf4);
    const vector = m.runToHandler();
    if (error === undefined) expect(vector).toBe(isUser ? 13 : -1);
    else {
      expect([vector, Number(m.stacked(0))]).toEqual([14, error]);
      expect(m.engine.get64(state.cr2)).toBe(AREA);
    }
  });

  it("lets supervisor code write read-only pages without WP", () => {
    const m = createSystemMachine(64);
    mapLong(m, AREA, BigInt(DATA), PRESENT);
    m.engine.set64(state.cr0, m.engine.get64(state.cr0) & ~CR0_WP);
    m.engine.updateTags();
    expect(faultOf(m, ...storeAl(AREA))).toBeUndefined();
  });

  it("restricts by every level, not the last alone", () => {
    const m = createSystemMachine(64);
    const entries = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE | USER);
    m.memory.setBigUint64(entries[1], m.memory.getBigUint64(entries[1], true) & ~WRITE, true);
    expect(faultOf(m, ...loadRax(AREA))).toBeUndefined();
    expect(faultOf(m, ...storeAl(AREA))).toBe(3);
  });

  it("faults on instruction fetch from a page that must not be executed, with the fetch bit", () => {
    const m = createSystemMachine(64);
    mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE | NO_EXECUTE);
    m.memory.setUint8(DATA, 0xf4);
    // mov rbx, AREA; jmp rbx
    expect(faultOf(m, 0x48, 0xbb, ...imm64(AREA), 0xff, 0xe3)).toBe(0x11);
    expect(m.stacked(1)).toBe(AREA);
  });

  it("takes bit 63 as reserved when execute-disable is off", () => {
    const m = createSystemMachine(64);
    mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE | NO_EXECUTE);
    m.engine.set64(state.efer, 0x501n);
    m.engine.updateTags();
    expect(faultOf(m, ...loadRax(AREA))).toBe(9);
  });

  it("takes address bits past the CPU's and offset bits of large pages as reserved", () => {
    const beyond = createSystemMachine(64);
    mapLong(beyond, AREA, BigInt(DATA) | (1n << 40n), PRESENT);
    expect(faultOf(beyond, ...loadRax(AREA))).toBe(9);
    const odd = createSystemMachine(64);
    const entries = mapLong(odd, AREA, 0n, PRESENT);
    odd.memory.setBigUint64(entries[2], 0x2083n, true);
    expect(faultOf(odd, ...loadRax(AREA))).toBe(9);
  });

  it("maps 2 MiB and 1 GiB pages, and INVLPG anywhere inside drops them", () => {
    for (const level of [2, 1] as const) {
      const m = createSystemMachine(64);
      const entries = mapLong(m, AREA, 0n, PRESENT);
      m.memory.setBigUint64(entries[level], 0x83n, true);
      m.memory.setBigUint64(DATA, 0xabcdn, true);
      expect(faultOf(m, ...loadRax(AREA + BigInt(DATA)))).toBeUndefined();
      expect(m.engine.reg(RAX)).toBe(0xabcdn);
      m.memory.setBigUint64(entries[level], 0n, true);
      // Still cached, until another page of it is invalidated.
      expect(faultOf(m, ...loadRax(AREA + BigInt(DATA)))).toBeUndefined();
      expect(faultOf(m, 0x48, 0xbb, ...imm64(AREA + 0x1000n), 0x0f, 0x01, 0x3b, ...loadRax(AREA + BigInt(DATA)))).toBe(0);
    }
  });

  it("keeps global pages across MOV to CR3 and drops the others", () => {
    for (const [rights, fault] of [
      [PRESENT | GLOBAL, undefined],
      [PRESENT, 0],
    ] as const) {
      const m = createSystemMachine(64);
      m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 0x80n);
      m.engine.updateTags();
      const entries = mapLong(m, AREA, BigInt(DATA), rights);
      faultOf(m, ...loadRax(AREA));
      m.memory.setBigUint64(entries[3], 0n, true);
      // mov rbx, cr3; mov cr3, rbx
      expect(faultOf(m, 0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, ...loadRax(AREA))).toBe(fault);
    }
  });

  it("reads and writes across a page boundary, and writes nothing when the second page faults", () => {
    const m = createSystemMachine(64);
    mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
    const second = mapLong(m, AREA + 0x1000n, BigInt(DATA + 0x4000), PRESENT | WRITE);
    m.engine.setReg(RAX, 0x1122_3344_5566_7788n);
    // mov [AREA + 0xffc], rax; mov rcx, [same] by rbx
    const rbx = [0x48, 0xbb, ...imm64(AREA + 0xffcn)];
    expect(faultOf(m, ...rbx, 0x48, 0x89, 0x03, 0x48, 0x8b, 0x0b)).toBeUndefined();
    expect(m.engine.reg(RCX)).toBe(0x1122_3344_5566_7788n);
    expect(m.memory.getUint32(DATA + 0xffc, true)).toBe(0x5566_7788);
    expect(m.memory.getUint32(DATA + 0x4000, true)).toBe(0x1122_3344);
    m.memory.setBigUint64(second[3], BigInt(DATA + 0x4000) | PRESENT, true);
    m.engine.flushTlb(false);
    m.memory.setUint32(DATA + 0xffc, 0, true);
    expect(faultOf(m, ...rbx, 0x48, 0x89, 0x03)).toBe(3);
    expect(m.engine.get64(state.cr2)).toBe(AREA + 0x1000n);
    expect(m.memory.getUint32(DATA + 0xffc, true)).toBe(0);
    // add [rbx], rax: read-modify-write
    m.memory.setBigUint64(second[3], BigInt(DATA + 0x4000) | PRESENT | WRITE, true);
    m.engine.flushTlb(false);
    m.engine.setReg(RBX, AREA + 0xffcn);
    m.engine.setReg(RAX, 1n);
    m.memory.setUint32(DATA + 0xffc, 0xffff_ffff, true);
    expect(faultOf(m, 0x48, 0x01, 0x03)).toBeUndefined();
    expect(m.memory.getUint32(DATA + 0xffc, true)).toBe(0);
    expect(m.memory.getUint32(DATA + 0x4000, true)).toBe(0x1122_3345);
  });

  it("survives more flushes than there are tags", () => {
    const m = createSystemMachine(64);
    mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
    // mov rcx, 5000; loop: mov cr3, cr3 through rbx; inc dword [AREA via rsi]; dec rcx; jnz
    m.engine.setReg(6, AREA);
    m.engine.setReg(RCX, 5000n);
    m.code(0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xff, 0x06, 0x48, 0xff, 0xc9, 0x75, 0xf3, 0xf4);
    expect(m.runToHandler(100_000)).toBe(-1);
    expect(m.memory.getUint32(DATA, true)).toBe(5000);
  });

  it("runs other code after INVLPG when another page was mapped", () => {
    const m = createSystemMachine(64);
    const entries = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
    m.ram.set([0xb8, 1, 0, 0, 0, 0xc3], DATA);
    m.ram.set([0xb8, 2, 0, 0, 0, 0xc3], DATA + 0x1000);
    m.engine.setReg(RBX, AREA);
    m.code(0xff, 0xd3, 0xf4);
    m.runToHandler();
    expect(m.engine.reg(RAX)).toBe(1n);
    m.memory.setBigUint64(entries[3], BigInt(DATA + 0x1000) | PRESENT, true);
    // invlpg [rbx]; call rbx
    m.code(0x0f, 0x01, 0x3b, 0xff, 0xd3, 0xf4);
    m.engine.set32(state.activity, 0);
    m.runToHandler();
    expect(m.engine.reg(RAX)).toBe(2n);
  });
});

describe("32-bit paging", () => {
  const LINEAR = 0x4000_0000;
  const load = [0xa1, 0, 0, 0, 0x40];
  const store = [0xa3, 0, 0, 0, 0x40];

  it("walks two levels with 4 KiB pages and sets accessed and dirty", () => {
    const m = createSystemMachine(32);
    const entries = mapNarrow(m, LINEAR, DATA, 3);
    m.memory.setUint32(DATA, 77, true);
    expect(faultOf(m, ...load)).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(77n);
    expect(faultOf(m, ...store)).toBeUndefined();
    expect(entries.map((at) => m.memory.getUint32(at, true) & 0x60)).toEqual([0x20, 0x60]);
  });

  it("maps 4 MiB pages with CR4.PSE only", () => {
    const m = createSystemMachine(32);
    const entries = mapNarrow(m, LINEAR, DATA, 3);
    m.memory.setUint32(entries[0], 0x83, true);
    m.memory.setUint32(0, 0x55, true);
    expect(faultOf(m, ...load)).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(0x55n);
  });

  it("reports user, write and presence in the error code, without a fetch bit", () => {
    const m = createSystemMachine(32);
    mapNarrow(m, LINEAR, DATA, 1);
    m.enterUser();
    expect(faultOf(m, ...store)).toBe(7);
  });
});

describe("PAE paging", () => {
  it("walks from the PDPTE registers, which MOV to CR3 loads", () => {
    const m = createSystemMachine(32);
    mapPae(m, 0x4000_0000, DATA);
    m.memory.setUint32(DATA, 99, true);
    expect(faultOf(m, 0xa1, 0, 0, 0, 0x40)).toBeUndefined();
    expect(m.engine.reg(RAX)).toBe(99n);
    // A changed PDPTE counts once CR3 is loaded again.
    const table = Number(m.engine.get64(state.cr3));
    m.memory.setBigUint64(table + 8, 0n, true);
    m.engine.flushTlb(false);
    expect(faultOf(m, 0xa1, 0, 0, 0, 0x40)).toBeUndefined();
    expect(faultOf(m, 0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xa1, 0, 0, 0, 0x40)).toBe(0);
  });

  it("refuses PDPTEs with reserved bits by #GP at MOV to CR3", () => {
    const m = createSystemMachine(32);
    mapPae(m, 0x4000_0000, DATA);
    const table = Number(m.engine.get64(state.cr3));
    m.memory.setBigUint64(table + 8, m.memory.getBigUint64(table + 8, true) | 2n, true);
    m.code(0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xf4);
    expect(m.runToHandler()).toBe(13);
  });
});

it("fetches at the code segment's limit and raises #GP past it", () => {
  const m = createSystemMachine(32);
  m.engine.set32(segmentOffset(CS) + 8, CODE + 1);
  m.engine.updateSegments();
  m.gate(13, 14, 0, 0x40);
  m.code(0x90, 0x90, 0x90);
  expect(m.runToHandler()).toBe(13);
  expect(m.stacked(1)).toBe(BigInt(CODE + 2));
});
