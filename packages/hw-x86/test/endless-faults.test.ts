/** Guests that fault without end: time passes all the same, so that whoever runs them gets the processor back. */
import { describe, expect, it } from "vitest";
import { RAX, RDI, RSP, state } from "../src/engine/cpu-state.ts";
import { createFlatMachine } from "./flat-machine.ts";
import { mapNarrow } from "./page-tables.ts";
import { createSystemMachine, HANDLERS } from "./system-machine.ts";

const UD2 = [0x0f, 0x0b];
const SS = 12;
const GP = 13;

describe("endless faults", () => {
  it("use up the budget when real-mode handlers fault at once", () => {
    const { engine, ram } = createFlatMachine(16);
    // All vectors lead to UD2; the stack wraps
    const view = new DataView(ram.buffer, ram.byteOffset);
    for (let vector = 0; vector < 256; vector++) view.setUint32(vector * 4, 0x8000, true);
    ram.set(UD2, 0x8000);
    engine.set64(state.rip, 0x8000n);
    const before = engine.retired();
    expect(engine.run(10_000)).toBe("budget");
    expect(engine.retired() - before).toBe(10_000);
  });

  it("use up the budget in 64-bit code with an interrupt stack", () => {
    const m = createSystemMachine(64);
    m.gate(6, 14, 0, undefined, 1);
    m.ram.set(UD2, HANDLERS + 6 * 16);
    m.code(...UD2);
    expect(m.engine.run(10_000)).toBe("budget");
  });

  it("charge nothing where handlers run", () => {
    const m = createSystemMachine(64);
    m.ram.set([0x48, 0xff, 0xc0, 0x48, 0xcf], HANDLERS + 6 * 16); // inc rax; iretq, to the UD2 again
    m.code(...UD2);
    m.engine.setReg(RAX, 0n);
    m.engine.run(2000);
    expect(m.engine.reg(RAX)).toBe(1000n);
  });
});

describe("an access across the end of 4 GiB", () => {
  it.each([
    ["read by CMPS", [0xa7], GP],
    ["read by MOV", [0x8b, 0x07], GP],
    // push dword [0x50000], whose memory operand is in the data segment
    ["written by PUSH", [0xff, 0x35, 0x00, 0x00, 0x05, 0x00], SS],
  ])("is the stack's only for what pushes and pops, however near it is to the stack pointer: %s", (_, code, vector) => {
    const m = createSystemMachine(32);
    m.code(...code, 0x90);
    m.enterUser();
    m.engine.setReg(RSP, 2n);
    m.engine.setReg(RDI, 0xffff_ffffn);
    expect(m.runToHandler()).toBe(vector);
  });
  it.each([
    ["interpreted", 1],
    ["translated", 3000],
  ])("is past the limit before its first page is looked for: %s", (_, rounds) => {
    const m = createSystemMachine(32);
    mapNarrow(m, 0x40_0000, 0x6000, 7);
    // mov [edi], eax; dec ecx; jnz
    m.code(0x89, 0x07, 0x49, 0x75, 0xfb, 0xbf, 0xff, 0xff, 0xff, 0xff, 0x89, 0x07);
    m.engine.setReg(1, BigInt(rounds));
    m.engine.setReg(RDI, 0x40_0000n);
    expect(m.runToHandler(100_000)).toBe(GP);
  });
});
