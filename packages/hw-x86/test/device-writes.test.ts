import { expect, it } from "vitest";
import { RAX, state } from "../src/engine/cpu-state.ts";
import { CODE, createSystemMachine, DATA } from "./system-machine.ts";

it("notices code that a device wrote between two runs, at an address that is looked up anew", () => {
  const m = createSystemMachine(64);
  // call [DATA + 0x100]; hlt. The target: mov eax, n; ret
  m.ram.set([0xff, 0x14, 0x25, 0x00, 0x01, 0x05, 0x00, 0xf4], CODE);
  m.memory.setBigUint64(DATA + 0x100, BigInt(DATA), true);
  m.ram.set([0xb8, 1, 0, 0, 0, 0xc3, 0xb8, 3, 0, 0, 0, 0xc3], DATA);
  const run = (target: number) => {
    m.memory.setBigUint64(DATA + 0x100, BigInt(target), true);
    m.engine.set64(state.rip, BigInt(CODE));
    m.engine.set32(state.activity, 0);
    expect(m.engine.run(10)).toBe("halted");
    return m.engine.reg(RAX);
  };
  expect(run(DATA)).toBe(1n);
  expect(run(DATA + 6)).toBe(3n);
  // The same bank page, written past the CPU, and reached by another linear address so that no lookup is warm.
  m.ram[DATA + 1] = 2;
  const alias = 0x80_0000_0000n;
  const top = Number(m.engine.get64(state.cr3));
  const pdpt = 0x10_0000;
  m.memory.setBigUint64(pdpt, 0x83n, true);
  m.memory.setBigUint64(top + 8 * Number((alias >> 39n) & 511n), BigInt(pdpt) | 3n, true);
  expect(run(Number(alias) + DATA)).toBe(2n);
});
