/** Alignment checks of user code (Intel SDM Vol. 3A, Interrupt 17 - Alignment Check Exception). */
import { describe, expect, it } from "vitest";
import { RAX, RCX, RDI, RSI, RSP, state } from "../src/engine/cpu-state.ts";
import { CODE, createSystemMachine, DATA, KERNEL_STACK, type SystemMachine, USER_STACK } from "./system-machine.ts";

const AC_FLAG = 0x4_0000;
const AM = 0x4_0000n;
const AC = 17;
const END = 0x81;

function machine({ am = true, flag = true, user = true } = {}): SystemMachine {
  const m = createSystemMachine(64);
  if (am) m.engine.set64(state.cr0, m.engine.get64(state.cr0) | AM);
  if (user) m.enterUser();
  else m.engine.setReg(RSP, BigInt(KERNEL_STACK));
  m.engine.setFlags(2 | (flag ? AC_FLAG : 0));
  m.gate(END, 14, 3);
  m.engine.setReg(RDI, BigInt(DATA + 1));
  m.engine.setReg(RSI, BigInt(DATA + 0x101));
  return m;
}
function vectorOf(m: SystemMachine, ...code: number[]): number {
  m.code(...code, 0xcd, END);
  return m.runToHandler(20_000);
}

describe("a misaligned access", () => {
  const accesses: readonly [string, number[]][] = [
    ["mov ax, [rdi]", [0x66, 0x8b, 0x07]],
    ["mov [rdi], eax", [0x89, 0x07]],
    ["mov rax, [rdi]", [0x48, 0x8b, 0x07]],
    ["lock inc dword [rdi]", [0xf0, 0xff, 0x07]],
    ["movsd", [0xa5]],
    ["rep movsq", [0xf3, 0x48, 0xa5]],
    ["movss xmm0, [rdi]", [0xf3, 0x0f, 0x10, 0x07]],
    ["fld qword [rdi]", [0xdd, 0x07]],
  ];
  it.each(accesses)("faults with error code 0: %s", (_name, code) => {
    const m = machine();
    m.engine.setReg(RCX, 2n);
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 0x600n);
    m.memory.setUint32(DATA, 0x1122_3344, true);
    expect(vectorOf(m, ...code)).toBe(AC);
    expect(m.stacked(0)).toBe(0n);
    expect(m.stacked(1)).toBe(BigInt(CODE));
    expect(m.memory.getUint32(DATA, true)).toBe(0x1122_3344);
  });
  it.each(accesses)("is plain without AC, without AM, and for the kernel: %s", (_name, code) => {
    for (const options of [{ flag: false }, { am: false }, { user: false }]) {
      const m = machine(options);
      m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 0x600n);
      m.engine.setReg(RCX, 2n);
      expect(vectorOf(m, ...code)).toBe(END);
    }
  });
  it("is plain where MOVUPS makes it, and for bytes", () => {
    const m = machine();
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) | 0x600n);
    expect(vectorOf(m, 0x0f, 0x10, 0x07, 0x8a, 0x07)).toBe(END);
  });
  it("faults on the stack too, and by an event's delivery never", () => {
    const m = machine();
    m.engine.setReg(RSP, BigInt(USER_STACK - 4));
    expect(vectorOf(m, 0x50)).toBe(AC);
    const other = machine();
    other.engine.setReg(RSP, BigInt(USER_STACK - 3));
    expect(vectorOf(other)).toBe(END);
  });
  it("is checked from the instruction after POPF on, in code that is hot, and no longer without AC", () => {
    const m = machine({ flag: false });
    m.engine.setReg(RCX, 6000n);
    // L: mov eax, [rdi]; dec ecx; jnz L; push AC; popfq; mov eax, [rdi]
    expect(vectorOf(m, 0x8b, 0x07, 0xff, 0xc9, 0x75, 0xfa, 0x68, 2, 0, 4, 0, 0x9d, 0x8b, 0x07)).toBe(AC);
    expect(m.stacked(1)).toBe(BigInt(CODE + 12));
    const off = machine();
    expect(vectorOf(off, 0x6a, 2, 0x9d, 0x8b, 0x07)).toBe(END);
  });
  it("gives way to a page fault", () => {
    const m = machine();
    m.engine.setReg(RDI, 0x7fff_f000_0001n);
    expect(vectorOf(m, 0x8b, 0x07)).toBe(14);
    expect(m.engine.reg(RAX)).toBe(0n);
  });
});
