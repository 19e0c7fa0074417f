/** What regions remember of translations: right at both ends of a page, and gone when the guest may expect another translation. */
import { describe, expect, test } from "vitest";
import { RAX, RBX, RCX, RDI, RDX, RSI, RSP, state } from "../src/engine/cpu-state.ts";
import { createFlatMachine } from "./flat-machine.ts";
import { mapLong } from "./page-tables.ts";
import { CODE, createSystemMachine, DATA, type SystemMachine } from "./system-machine.ts";

const PRESENT = 1n;
const WRITE = 2n;
const AREA = 0x40_0000_0000n;
const OTHER = DATA + 0x8000;
const HLT = 0xf4;

/** Two linear pages side by side, whose pages in memory are not; returns the address of the first one's entry. */
function scattered(m: SystemMachine): number {
  mapLong(m, AREA + 4096n, BigInt(OTHER), PRESENT | WRITE);
  const [, , , entry] = mapLong(m, AREA, BigInt(DATA), PRESENT | WRITE);
  for (let i = 0; i < 8192; i++) m.ram[(i < 4096 ? DATA : OTHER - 4096) + i] = (i * 7) & 255;
  return entry;
}
function run(m: SystemMachine, registers: ReadonlyMap<number, bigint>, ...code: number[]): number {
  for (const [register, value] of registers) m.engine.setReg(register, value);
  m.code(...code);
  return m.runToHandler();
}

describe("an access through a base register that led to the page before", () => {
  // mov rcx, [rsi + 8 aligned]; then [rsi + displacement]
  test.each([
    ["in the middle", 0x100],
    ["at its last bytes", 4088],
    ["across its end, all but one byte in it", 4089],
    ["across its end, one byte in it", 4095],
    ["in the page behind", 4096],
  ])("reads %s", (_, at) => {
    const m = createSystemMachine(64);
    scattered(m);
    const warm = [0x48, 0x8b, 0x0e, 0x48, 0x8b, 0x0e];
    const load = [0x48, 0x8b, 0x86, at & 255, at >> 8, 0, 0];
    expect(run(m, new Map([[RSI, AREA]]), ...warm, ...load, HLT)).toBe(-1);
    const bytes = Array.from({ length: 8 }, (_, i) => ((at + i) * 7) & 255);
    expect(m.engine.reg(RAX)).toBe(bytes.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n));
  });
  test.each([
    ["before its start, one byte in it", -7],
    ["before its start, all but one byte in it", -1],
    ["at its start", 0],
  ])("writes %s", (_, at) => {
    const m = createSystemMachine(64);
    scattered(m);
    const second = AREA + 4096n;
    const warm = [0x48, 0x89, 0x0e, 0x48, 0x89, 0x4e, 8];
    const store = [0x48, 0x89, 0x46, at & 255];
    const value = 0x1122_3344_5566_7788n;
    const registers = new Map([
      [RSI, second],
      [RAX, value],
    ]);
    expect(run(m, registers, ...warm, ...store, HLT)).toBe(-1);
    for (let i = 0; i < 8; i++) {
      const place = at + i < 0 ? DATA + 4096 + at + i : OTHER + at + i;
      expect(m.ram[place]).toBe(Number((value >> BigInt(8 * i)) & 255n));
    }
  });
});

describe("a loop that changes the translation it reads through", () => {
  // again: mov rax, [rsi]; add rbx, rax; mov [rdi], rdx; <drop it>; dec ecx; jnz again; hlt
  function loop(...drop: number[]): number[] {
    const body = [0x48, 0x8b, 0x06, 0x48, 0x01, 0xc3, 0x48, 0x89, 0x17, ...drop, 0xff, 0xc9];
    return [...body, 0x75, (-body.length - 2) & 255, HLT];
  }
  const INVLPG = [0x0f, 0x01, 0x3e];
  // mov rax, cr3; mov cr3, rax
  const RELOAD_CR3 = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];

  test.each([
    ["INVLPG", INVLPG],
    ["a load of CR3", RELOAD_CR3],
  ])("sees the new one after %s", (_, drop) => {
    const m = createSystemMachine(64);
    const entry = scattered(m);
    m.memory.setBigUint64(DATA, 1n, true);
    m.memory.setBigUint64(OTHER, 1000n, true);
    const registers = new Map([
      [RSI, AREA],
      [RDI, BigInt(entry)],
      [RDX, BigInt(OTHER) | PRESENT | WRITE],
      [RCX, 5n],
      [RBX, 0n],
    ]);
    expect(run(m, registers, ...loop(...drop))).toBe(-1);
    expect(m.engine.reg(RBX)).toBe(4001n);
  });
  test("faults once the page is gone, in the round in which it is dropped and not before", () => {
    const m = createSystemMachine(64);
    const entry = scattered(m);
    const registers = new Map([
      [RSI, AREA],
      [RDI, BigInt(entry)],
      [RDX, 0n],
      [RCX, 5n],
    ]);
    expect(run(m, registers, ...loop(...INVLPG))).toBe(14);
    expect(m.engine.reg(RCX)).toBe(4n);
    expect(m.engine.get64(state.cr2)).toBe(AREA);
  });
  test("may not write any more after the page was made read-only", () => {
    const m = createSystemMachine(64);
    const entry = scattered(m);
    m.engine.set64(state.cr0, m.engine.get64(state.cr0) | 0x1_0000n);
    const registers = new Map([
      [RSI, AREA],
      [RDI, BigInt(entry)],
      [RDX, BigInt(DATA) | PRESENT],
      [RCX, 5n],
    ]);
    // mov [rsi], rcx; mov [rdi], rdx; invlpg [rsi]; dec ecx; jnz
    const body = [0x48, 0x89, 0x0e, 0x48, 0x89, 0x17, ...INVLPG, 0xff, 0xc9];
    expect(run(m, registers, ...body, 0x75, (-body.length - 2) & 255, HLT)).toBe(14);
    expect(Number(m.stacked(0))).toBe(3);
    expect(m.engine.reg(RCX)).toBe(4n);
  });
});

test.each(["off", "hot", "always"] as const)("code written through a remembered page is noticed (%s)", (mode) => {
  const m = createFlatMachine(64, 4 << 20, mode);
  const rounds = 6000;
  // at 0x5000: mov eax, 0; ret
  m.ram.set([0xb8, 0, 0, 0, 0, 0xc3], 0x5000);
  // again: mov [rsi + 1], ecx; mov [rsi + 0x100], ecx; call rsi; add rbx, rax; dec ecx; jnz again; hlt
  const body = [0x89, 0x4e, 0x01, 0x89, 0x8e, 0, 1, 0, 0, 0xff, 0xd6, 0x48, 0x01, 0xc3, 0xff, 0xc9];
  m.ram.set([...body, 0x75, (-body.length - 2) & 255, HLT], CODE);
  m.engine.set64(state.rip, BigInt(CODE));
  m.engine.setReg(RSI, 0x5000n);
  m.engine.setReg(RSP, 0x8000n);
  m.engine.setReg(RCX, BigInt(rounds));
  m.engine.run(8 * rounds);
  expect(m.engine.reg(RBX)).toBe(BigInt((rounds * (rounds + 1)) / 2));
});
