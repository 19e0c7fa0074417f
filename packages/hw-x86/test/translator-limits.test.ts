/** Where regions end, when pages are left to the interpreter, and what the translator counts. */
import { describe, expect, test } from "vitest";
import type { Gva } from "../src/addresses.ts";
import { RAX, RCX, state } from "../src/engine/cpu-state.ts";
import type { TranslateMode } from "../src/engine/translator/translator.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x2000;

function machine(translate: TranslateMode, code: readonly number[], at = CODE): FlatMachine {
  const made = createFlatMachine(64, 4 << 20, translate);
  made.ram.set(code, at);
  made.engine.set64(state.rip, BigInt(at));
  return made;
}
const counts = ({ engine }: FlatMachine) => engine.counts().translator;

/** inc eax; jmp over the rest of the slot */
const STEP = [0xff, 0xc0, 0xeb, 12];
const SLOT = 16;
/** dec ecx; jnz to `start`; hlt. `at`: its own address. */
function closing(at: number, start: number): number[] {
  const displacement = start - (at + 8);
  return [0xff, 0xc9, 0x0f, 0x85, ...[0, 8, 16, 24].map((shift) => (displacement >> shift) & 255), 0xf4];
}

/** A loop over so many blocks, run a hundred times. */
function chain(translate: TranslateMode, blocks: number, at: number): FlatMachine {
  const made = machine(translate, [], at);
  for (let i = 0; i < blocks; i++) made.ram.set(STEP, at + i * SLOT);
  made.ram.set(closing(at + blocks * SLOT, at), at + blocks * SLOT);
  made.engine.setReg(RCX, 100n);
  expect(made.engine.run(10_000_000)).toBe("halted");
  expect(made.engine.reg(RAX)).toBe(BigInt(100 * blocks));
  expect(made.engine.retired()).toBe(100 * (blocks * 2 + 2) + 1);
  return made;
}

describe("regions", () => {
  test("hold a loop of many blocks in one", () => {
    const { regionsMade, instructions } = counts(chain("always", 20, CODE));
    expect(regionsMade).toBeGreaterThan(0);
    expect(instructions).toBeGreaterThanOrEqual(42);
    // One link for each block, of the two ways of which one leads out
    const made = chain("hot", 20, CODE);
    expect(made.engine.counts().blocks).toMatchObject({ flushes: 0, decoded: 22 });
    expect(made.engine.counts().blocks.linked).toBeGreaterThanOrEqual(21);
  });
  test("end where there are too many blocks, and go on in the next", () => {
    const { regionsMade } = counts(chain("always", 500, CODE));
    expect(regionsMade).toBeGreaterThan(2);
  });
  test("do the same where a loop crosses a page, and where it spreads over many", () => {
    expect(counts(chain("always", 20, CODE + 4096 - 10 * SLOT)).regionsMade).toBeGreaterThan(0);
    expect(counts(chain("always", 1000, CODE)).regionsMade).toBeGreaterThan(1000 / 200);
  });
  test("are none where nothing is translated, and where nothing is hot", () => {
    expect(counts(chain("off", 20, CODE)).regionsMade).toBe(0);
    expect(counts(chain("hot", 20, CODE)).regionsMade).toBe(0);
  });
});

describe("code that changes", () => {
  /** add eax, imm; dec ecx; jnz back; hlt */
  const LOOP = [0x83, 0xc0, 1, 0xff, 0xc9, 0x75, 0xf9, 0xf4];
  const round = (made: FlatMachine, value: number, times: number): void => {
    made.engine.writeLinear(BigInt(CODE + 2) as Gva, 1, BigInt(value), true);
    made.engine.set64(state.rip, BigInt(CODE));
    made.engine.set32(state.activity, 0);
    made.engine.setReg(RAX, 0n);
    made.engine.setReg(RCX, BigInt(times));
    expect(made.engine.run(1_000_000)).toBe("halted");
    expect(made.engine.reg(RAX)).toBe(BigInt(value * times));
  };

  test("is translated anew, and the region that it was is counted as dropped", () => {
    const made = machine("always", LOOP);
    round(made, 1, 10);
    const before = counts(made);
    expect(before).toMatchObject({ invalidated: 0, flushes: 0 });
    expect(before.regionsInUse).toBe(before.regionsMade);
    expect(before.bytes).toBeGreaterThan(100);
    round(made, 2, 10);
    const after = counts(made);
    expect(after.regionsMade).toBeGreaterThan(before.regionsMade);
    expect(after.invalidated).toBe(before.regionsMade);
    expect(after.regionsInUse).toBe(after.regionsMade - after.invalidated);
  });

  test("is left to the interpreter when it changes again and again, where only hot code is translated", () => {
    const made = machine("hot", LOOP);
    for (let time = 0; time < 60; time++) round(made, (time % 100) + 1, 3000);
    const before = counts(made);
    expect(before.regionsMade).toBeGreaterThan(0);
    for (let time = 0; time < 10; time++) round(made, (time % 100) + 1, 3000);
    expect(counts(made).regionsMade).toBe(before.regionsMade);
  });
});
