/** What keeps the kernel off user pages and user code off the kernel's tables: SMEP, SMAP, UMIP; and process-context identifiers. */
import { describe, expect, it } from "vitest";
import { RAX, RBX, RCX, state } from "../src/engine/cpu-state.ts";
import { mapLong, NO_EXECUTE } from "./page-tables.ts";
import { CODE, createSystemMachine, DATA, imm64, type SystemMachine } from "./system-machine.ts";

const PRESENT = 1n;
const WRITE = 2n;
const USER = 4n;
const GLOBAL = 0x100n;
const UMIP = 0x800n;
const PCIDE = 0x2_0000n;
const SMEP = 0x10_0000n;
const SMAP = 0x20_0000n;
const AC = 0x4_0000;
const GP = 13;
const UD = 6;
const PF = 14;
/** Linear page for tests: 256 GiB. */
const AREA = 0x40_0000_0000n;
const STAC = [0x0f, 0x01, 0xcb];
const CLAC = [0x0f, 0x01, 0xca];
const LOAD = [0x48, 0xa1, ...imm64(AREA)];
const STORE = [0x48, 0xa3, ...imm64(AREA)];
const JUMP = [0x48, 0xb8, ...imm64(AREA), 0xff, 0xe0];

/** A machine whose own pages are the supervisor's, with a page of these rights at AREA. */
function prepare(cr4: bigint, rights: bigint): SystemMachine {
  const m = createSystemMachine(64);
  const directory = m.ram.length - 4096;
  for (let i = 0; i < 512; i++) {
    const at = directory + i * 8;
    m.memory.setBigUint64(at, m.memory.getBigUint64(at, true) & ~USER, true);
  }
  m.memory.setBigUint64(DATA, 0x1234n, true);
  m.ram[DATA + 0x100] = 0xf4;
  m.engine.set64(state.cr4, m.engine.get64(state.cr4) | cr4);
  mapLong(m, AREA, BigInt(DATA), rights);
  m.engine.updateTags();
  return m;
}

/** Vector and error code that it ended in; undefined for HLT in the code. */
function outcome(m: SystemMachine, ...code: number[]): [number, number] | undefined {
  m.code(...code, 0xf4);
  const vector = m.runToHandler(1000);
  return vector < 0 ? undefined : [vector, Number(m.stacked(0))];
}

describe("SMEP", () => {
  it("keeps supervisor code from executing user pages", () => {
    expect(outcome(prepare(SMEP, PRESENT | USER), ...JUMP)).toEqual([PF, 0x11]);
    expect(outcome(prepare(SMEP, PRESENT), ...JUMP)).not.toEqual([PF, 0x11]);
    expect(outcome(prepare(0n, PRESENT | USER), ...JUMP)).not.toEqual([PF, 0x11]);
    expect(outcome(prepare(SMEP, PRESENT | USER), ...LOAD)).toBeUndefined();
  });

  it("makes the fetch bit of the error code, without execute-disable too", () => {
    const m = prepare(SMEP, 0n);
    m.engine.set64(state.efer, m.engine.get64(state.efer) & ~0x800n);
    m.engine.updateTags();
    expect(outcome(m, ...JUMP)).toEqual([PF, 0x10]);
    const off = prepare(0n, 0n);
    off.engine.set64(state.efer, off.engine.get64(state.efer) & ~0x800n);
    off.engine.updateTags();
    expect(outcome(off, ...JUMP)).toEqual([PF, 0]);
    expect(outcome(prepare(0n, PRESENT | NO_EXECUTE), ...JUMP)).toEqual([PF, 0x11]);
  });

  it("begins when CR4 says so, for pages that were executed before", () => {
    const m = prepare(0n, PRESENT | USER);
    m.memory.setUint8(DATA, 0xc3); // ret
    const call = [0x48, 0xb8, ...imm64(AREA), 0xff, 0xd0];
    expect(outcome(m, ...call)).toBeUndefined();
    // mov rbx, cr4; or ebx, SMEP; mov cr4, rbx
    expect(outcome(m, 0x0f, 0x20, 0xe3, 0x81, 0xcb, 0, 0, 0x10, 0, 0x0f, 0x22, 0xe3, ...call)).toEqual([PF, 0x11]);
  });
});

describe("SMAP", () => {
  it("keeps supervisor code from the data of user pages unless AC is set", () => {
    const rights = PRESENT | USER | WRITE;
    expect(outcome(prepare(SMAP, rights), ...LOAD)).toEqual([PF, 1]);
    expect(outcome(prepare(SMAP, rights), ...STORE)).toEqual([PF, 3]);
    expect(outcome(prepare(SMAP, rights), ...STAC, ...LOAD)).toBeUndefined();
    expect(outcome(prepare(SMAP, rights), ...STAC, ...STORE)).toBeUndefined();
    expect(outcome(prepare(SMAP, PRESENT), ...LOAD)).toBeUndefined();
    expect(outcome(prepare(0n, rights), ...LOAD)).toBeUndefined();
  });

  it("closes what STAC opened with CLAC and POPF, again and again", () => {
    const m = prepare(SMAP, PRESENT | USER | WRITE);
    const popf = [0x6a, 0x02, 0x9d]; // push 2; popf
    for (let round = 0; round < 3; round++) {
      for (const close of [CLAC, popf]) {
        m.engine.setFlags(2);
        m.engine.setReg(RBX, 0n);
        expect(outcome(m, ...STAC, ...LOAD, ...STORE, ...close, 0x48, 0xff, 0xc3, ...LOAD)).toEqual([PF, 1]);
        // inc rbx came before the fault
        expect(m.engine.reg(RBX)).toBe(1n);
      }
    }
    expect(m.stacked(3) & BigInt(AC)).toBe(0n);
  });

  it("closes pages that a region remembers by their base register", () => {
    const popf = [0x6a, 0x02, 0x9d]; // push 2; popf
    for (const close of [CLAC, popf]) {
      const m = prepare(SMAP, PRESENT | USER | WRITE);
      // mov rbx, AREA; stac; mov rax, [rbx] twice; CLAC or POPF; mov rax, [rbx]
      const load = [0x48, 0x8b, 0x03];
      expect(outcome(m, 0x48, 0xbb, ...imm64(AREA), ...STAC, ...load, ...load, ...close, ...load, ...load)).toEqual([PF, 1]);
      expect(m.stacked(3) & BigInt(AC)).toBe(0n);
    }
  });

  it("leaves AC to interrupts, and user code alone", () => {
    const m = prepare(SMAP, PRESENT | USER | WRITE);
    // AC stays over delivery: the handler of #UD halts with it
    expect(outcome(m, ...STAC, 0x0f, 0x0b)![0]).toBe(UD);
    expect(m.engine.readFlags() & AC).toBe(AC);
  });

  it("does not let AC through to system data structures", () => {
    const m = prepare(SMAP, PRESENT | USER | WRITE);
    // The GDT in a user page: a load of DS reads it as the supervisor's own
    m.engine.set64(state.gdtrBase, AREA);
    m.engine.setReg(RAX, 0x10n);
    m.engine.setFlags(2 | AC);
    m.code(0x8e, 0xd8, 0xf4);
    m.engine.run(1);
    expect(m.engine.get64(state.cr2)).toBe(AREA + 0x10n);
  });

  it("opens more pages than are remembered one by one", () => {
    const m = prepare(SMAP, PRESENT | USER | WRITE);
    for (let i = 1n; i < 400n; i++) mapLong(m, AREA + i * 4096n, BigInt(DATA), PRESENT | USER | WRITE);
    m.engine.setReg(RBX, AREA);
    m.engine.setReg(RCX, 400n);
    // stac; l: mov rax,[rbx]; add rbx,4096; dec rcx; jnz l; clac; sub rbx,4096; mov rax,[rbx]
    const loop = [0x48, 0x8b, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xf1];
    m.code(...STAC, ...loop, ...CLAC, 0x48, 0x81, 0xeb, 0, 0x10, 0, 0, 0x48, 0x8b, 0x03, 0xf4);
    expect(m.runToHandler(5000)).toBe(PF);
    expect(m.engine.get64(state.cr2)).toBe(AREA + 399n * 4096n);
  });

  it("STAC and CLAC are undefined outside CPL 0", () => {
    for (const code of [STAC, CLAC]) {
      const m = createSystemMachine(64);
      m.enterUser();
      m.code(...code);
      expect(m.runToHandler()).toBe(UD);
    }
  });
});

describe("UMIP", () => {
  const instructions: [string, number[]][] = [
    ["SGDT", [0x0f, 0x01, 0x03]],
    ["SIDT", [0x0f, 0x01, 0x0b]],
    ["SLDT", [0x0f, 0x00, 0xc0]],
    ["STR", [0x0f, 0x00, 0xc8]],
    ["SMSW", [0x0f, 0x01, 0xe0]],
  ];
  it.each(instructions)("%s is for the kernel", (_name, code) => {
    const user = (cr4: bigint): SystemMachine => {
      const m = createSystemMachine(64);
      m.engine.set64(state.cr4, m.engine.get64(state.cr4) | cr4);
      m.engine.setReg(RBX, BigInt(DATA));
      m.enterUser();
      return m;
    };
    // UD2 behind tells that it went through
    expect(outcome(user(UMIP), ...code, 0x0f, 0x0b)).toEqual([GP, 0]);
    expect(outcome(user(0n), ...code, 0x0f, 0x0b)![0]).toBe(UD);
    const kernel = createSystemMachine(64);
    kernel.engine.set64(state.cr4, kernel.engine.get64(state.cr4) | UMIP);
    kernel.engine.setReg(RBX, BigInt(DATA));
    expect(outcome(kernel, ...code)).toBeUndefined();
  });
});

describe("process-context identifiers", () => {
  // mov cr3, rax; mov cr4, rax; mov cr0, rax
  const MOV_CR3 = [0x0f, 0x22, 0xd8];
  const MOV_CR4 = [0x0f, 0x22, 0xe0];
  const MOV_CR0 = [0x0f, 0x22, 0xc0];
  const INVPCID = [0x66, 0x0f, 0x38, 0x82, 0x03]; // rax, [rbx]

  function machine(): SystemMachine {
    const m = prepare(PCIDE, PRESENT | WRITE);
    m.engine.setReg(RBX, BigInt(DATA + 0x800));
    return m;
  }

  it("are in CR3, with a bit that keeps translations", () => {
    const m = machine();
    const cr3 = m.engine.get64(state.cr3);
    m.engine.setReg(RAX, cr3 | 0x123n | (1n << 63n));
    expect(outcome(m, ...MOV_CR3)).toBeUndefined();
    expect(m.engine.get64(state.cr3)).toBe(cr3 | 0x123n);
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) & ~PCIDE);
    m.engine.updateTags();
    m.engine.setReg(RAX, cr3 | (1n << 63n));
    expect(outcome(m, ...MOV_CR3)).toEqual([GP, 0]);
  });

  it("need long mode and CR3 bits 11:0 clear to begin, and paging to go on", () => {
    const m = createSystemMachine(64);
    const cr4 = m.engine.get64(state.cr4);
    m.engine.setReg(RAX, cr4 | PCIDE);
    m.engine.set64(state.cr3, m.engine.get64(state.cr3) | 8n);
    m.engine.updateTags();
    expect(outcome(m, ...MOV_CR4)).toEqual([GP, 0]);
    m.engine.set64(state.cr3, m.engine.get64(state.cr3) & ~8n);
    m.engine.updateTags();
    m.engine.setReg(RAX, cr4 | PCIDE);
    expect(outcome(m, ...MOV_CR4)).toBeUndefined();
    m.engine.setReg(RAX, m.engine.get64(state.cr0) & ~0x8000_0000n);
    expect(outcome(m, ...MOV_CR0)).toEqual([GP, 0]);
    const protectedMode = createSystemMachine(32);
    protectedMode.engine.setReg(RAX, protectedMode.engine.get64(state.cr4) | PCIDE);
    expect(outcome(protectedMode, ...MOV_CR4)).toEqual([GP, 0]);
  });

  it.each([
    ["an address of the current identifier", 0n, 0n, AREA],
    ["the current identifier", 1n, 0n, 0n],
    ["everything", 2n, 0n, 0n],
    ["everything but global pages", 3n, 0n, 0n],
  ] as const)("INVPCID drops %s", (_name, type, context, address) => {
    const m = machine();
    const [, , , last] = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
    m.memory.setBigUint64(DATA + 0x800, context, true);
    m.memory.setBigUint64(DATA + 0x808, address, true);
    expect(outcome(m, ...LOAD)).toBeUndefined();
    m.memory.setBigUint64(last, 0n, true);
    expect(outcome(m, ...LOAD)).toBeUndefined();
    m.engine.setReg(RAX, type);
    expect(outcome(m, ...INVPCID, ...LOAD)).toEqual([PF, 0]);
  });

  it("INVPCID keeps global pages unless they are asked for", () => {
    const m = machine();
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 0x80n);
    const [, , , last] = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE | GLOBAL);
    m.engine.updateTags();
    expect(outcome(m, ...LOAD)).toBeUndefined();
    m.memory.setBigUint64(last, 0n, true);
    m.engine.setReg(RAX, 3n);
    expect(outcome(m, ...INVPCID, ...LOAD)).toBeUndefined();
    m.engine.setReg(RAX, 2n);
    expect(outcome(m, ...INVPCID, ...LOAD)).toEqual([PF, 0]);
  });

  it("INVPCID refuses what is wrong", () => {
    const attempt = (type: bigint, context: bigint, address: bigint, cr4 = PCIDE): [number, number] | undefined => {
      const m = prepare(cr4, PRESENT | WRITE);
      m.engine.setReg(RBX, BigInt(DATA + 0x800));
      m.engine.setReg(RAX, type);
      m.memory.setBigUint64(DATA + 0x800, context, true);
      m.memory.setBigUint64(DATA + 0x808, address, true);
      return outcome(m, ...INVPCID);
    };
    expect(attempt(4n, 0n, 0n)).toEqual([GP, 0]);
    expect(attempt(1n << 32n, 0n, 0n)).toEqual([GP, 0]);
    expect(attempt(1n, 0x1000n, 0n)).toEqual([GP, 0]);
    expect(attempt(0n, 0n, 1n << 47n)).toEqual([GP, 0]);
    expect(attempt(1n, 5n, 0n)).toBeUndefined();
    expect(attempt(1n, 5n, 0n, 0n)).toEqual([GP, 0]);
    expect(attempt(2n, 5n, 0n, 0n)).toBeUndefined();
    const user = createSystemMachine(64);
    user.engine.setReg(RBX, BigInt(DATA));
    user.enterUser();
    expect(outcome(user, ...INVPCID)).toEqual([GP, 0]);
    expect(user.stacked(1)).toBe(BigInt(CODE));
  });
});
