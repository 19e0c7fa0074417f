/** Regions over pages: the way into another page is checked, whatever happened to its mapping or its bytes. And ways into a region. */
import { describe, expect, it } from "vitest";
import { RAX, RBX, RCX, state } from "../src/engine/cpu-state.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { bytes32, CODE, ROUNDS, runLoop, writeLoop } from "./calling-loop.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CALLEE = CODE + 0x1000;
const OTHER = CODE + 0x8000;
const TABLE = 0x1_0000;
const RAM = 16 << 20;

/** A loop that calls a function in the next page, mapped by 4 KiB pages; `adds` is what the function adds to RAX. */
function machineWithCalls(translate: TranslateMode): {
  m: FlatMachine;
  run: () => bigint;
  map: (linear: number, to: number) => void;
} {
  const m = createFlatMachine(64, RAM, translate);
  const view = new DataView(m.ram.buffer, m.ram.byteOffset);
  for (let page = 0; page < 512; page++) view.setBigUint64(TABLE + page * 8, BigInt(CODE + page * 4096 + 7), true);
  view.setBigUint64(RAM - 4096 + (CODE >>> 21) * 8, BigInt(TABLE + 7), true);
  m.engine.flushTlb(false);
  writeLoop(m, CALLEE);
  // add eax, n; ret
  m.ram.set([0x83, 0xc0, 1, 0xc3], CALLEE);
  m.ram.set([0x83, 0xc0, 3, 0xc3], OTHER);
  const run = (): bigint => runLoop(m);
  const map = (linear: number, to: number): void =>
    view.setBigUint64(TABLE + ((linear >>> 12) & 511) * 8, BigInt(to + 7), true);
  return { m, run, map };
}

it.each<TranslateMode>(["off", "hot", "always"])("runs a function of another page as part of the loop (%s)", (mode) => {
  const { m, run } = machineWithCalls(mode);
  expect(run()).toBe(BigInt(ROUNDS));
  expect(run()).toBe(BigInt(ROUNDS));
  if (mode === "off") expect(m.engine.counts().translator.regionsMade).toBe(0);
  else expect(m.engine.counts().translator.regionsMade).toBeGreaterThan(0);
});

it.each<TranslateMode>(["off", "hot", "always"])("sees that the function's page was mapped elsewhere (%s)", (mode) => {
  const { m, run, map } = machineWithCalls(mode);
  expect(run()).toBe(BigInt(ROUNDS));
  map(CALLEE, OTHER);
  m.engine.flushPage(BigInt(CALLEE) as never);
  expect(run()).toBe(3n * BigInt(ROUNDS));
  map(CALLEE, CALLEE);
  m.engine.flushTlb(true);
  expect(run()).toBe(BigInt(ROUNDS));
});

it.each<TranslateMode>(["off", "hot", "always"])("sees that the function changed (%s)", (mode) => {
  const { m, run } = machineWithCalls(mode);
  expect(run()).toBe(BigInt(ROUNDS));
  m.engine.writeLinear(BigInt(CALLEE + 2) as never, 1, 7n, true);
  if (mode !== "off") expect(m.engine.counts().translator.invalidated).toBeGreaterThan(0);
  expect(run()).toBe(7n * BigInt(ROUNDS));
});

it.each<TranslateMode>(["off", "hot", "always"])("sees a new mapping of a page that lay at two addresses (%s)", (mode) => {
  const { m, run, map } = machineWithCalls(mode);
  // The function lies in the loop's page, and is called at the other address
  const far = 0x800;
  m.ram.set([0xe8, ...bytes32(CALLEE + far - CODE - 5)], CODE);
  m.ram.set([0x83, 0xc0, 5, 0xc3], CODE + far);
  m.ram.set([0x83, 0xc0, 9, 0xc3], OTHER + far);
  map(CALLEE, CODE);
  m.engine.flushTlb(true);
  expect(run()).toBe(5n * BigInt(ROUNDS));
  map(CALLEE, OTHER);
  m.engine.flushPage(BigInt(CALLEE) as never);
  expect(run()).toBe(9n * BigInt(ROUNDS));
});

it("is entered again behind a call that leaves it", () => {
  const { m } = machineWithCalls("hot");
  // again: call rbx; nop x 3; dec ecx; jnz again; hlt
  m.ram.set([0xff, 0xd3, 0x90, 0x90, 0x90], CODE);
  m.engine.setReg(RBX, BigInt(CALLEE));
  m.engine.set64(state.rip, BigInt(CODE));
  m.engine.setReg(4, BigInt(CODE + 0x10_0000));
  // More often than a block inside of a region waits for one of its own
  const rounds = 6 * ROUNDS;
  m.engine.setReg(RCX, BigInt(rounds));
  expect(m.engine.run(10 * rounds)).toBe("halted");
  expect(m.engine.reg(RAX)).toBe(BigInt(rounds));
  // What is behind the call needs no region of its own
  expect(m.engine.counts().translator.regionsMade).toBe(2);
});

it("drops a region once, whichever of its pages changes, and makes it anew", () => {
  const { m, run } = machineWithCalls("hot");
  run();
  const before = m.engine.counts().translator;
  expect(before.regionsInUse).toBeGreaterThan(0);
  m.engine.writeLinear(BigInt(CALLEE + 2) as never, 1, 2n, true);
  m.engine.writeLinear(BigInt(CODE + 9) as never, 1, 0xf4n, true);
  expect(m.engine.counts().translator.regionsInUse).toBe(0);
  expect(run()).toBe(2n * BigInt(ROUNDS));
  expect(m.engine.counts().translator.regionsInUse).toBeGreaterThan(0);
});

describe.each<TranslateMode>(["off", "hot", "always"])("a call by way of a jump through a pointer (%s)", (mode) => {
  const POINTER = CODE + 0x2000;
  const STUB = CODE + 0x40;
  /** The loop calls a stub, jmp [rip + ...], which goes to the function; call [rip + ...] where it `isDirect`. */
  function machineWithStub(isDirect: boolean): ReturnType<typeof machineWithCalls> & { point: (to: number) => void } {
    const made = machineWithCalls(mode);
    const { m } = made;
    const point = (to: number): void => m.engine.writeLinear(BigInt(POINTER) as never, 8, BigInt(to), true);
    point(CALLEE);
    if (isDirect) m.ram.set([0xff, 0x15, ...bytes32(POINTER - CODE - 6), 0xff, 0xc9, 0x75, 0xf6, 0xf4], CODE);
    else {
      m.ram.set([0xe8, ...bytes32(STUB - CODE - 5)], CODE);
      m.ram.set([0xff, 0x25, ...bytes32(POINTER - STUB - 6)], STUB);
    }
    return { ...made, point };
  }
  it.each([
    ["a jump", false, 6],
    ["a call", true, 5],
  ])("goes where the pointer leads: %s", (_, isDirect, instructions) => {
    const { m, point } = machineWithStub(isDirect);
    expect(runLoop(m, instructions)).toBe(BigInt(ROUNDS));
    // One region has the loop and the function
    if (mode === "hot") expect(m.engine.counts().translator).toMatchObject({ regionsMade: 1, regionsInUse: 1 });
    point(OTHER);
    expect(runLoop(m, instructions)).toBe(3n * BigInt(ROUNDS));
    point(CALLEE);
    expect(runLoop(m, instructions)).toBe(BigInt(ROUNDS));
  });
});
