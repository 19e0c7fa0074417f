/** Where regions begin: not in the middle of others that only the ends of runs leave there. */
import { expect, it } from "vitest";
import { RAX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import { HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
const INNER = CODE + 10;
/** again: inc eax; test al, 7; jnz skip; mov dl, 4; inner: dec edx; jnz inner; skip: dec ecx; jnz again; hlt */
const LOOPS = [0xff, 0xc0, 0xa8, 7, 0x75, 8, 0xb2, 4, 0x66, 0x90, 0xff, 0xca, 0x75, 0xfc, 0xff, 0xc9, 0x75, 0xee, 0xf4];
/** Of the outer loop, that the region with both is there behind. */
const WARM = 4 * HOT_ENTRIES_IN_TESTS;

function warmMachine(): FlatMachine {
  const made = createFlatMachine(64, 1 << 20, "hot");
  made.ram.set(LOOPS, CODE);
  const { engine } = made;
  engine.set64(state.rip, BigInt(CODE));
  engine.setReg(RAX, 0n);
  engine.setReg(RDX, 0n);
  engine.setReg(RCX, BigInt(WARM));
  expect(engine.run(20 * WARM)).toBe("halted");
  expect(engine.counts().translator.regionsMade).toBe(1);
  engine.set32(state.activity, 0);
  return made;
}
const enterInner = ({ engine }: FlatMachine, rounds: number): void => {
  engine.set64(state.rip, BigInt(INNER));
  engine.setReg(RDX, BigInt(rounds));
  engine.setReg(RCX, 0n);
};

it("a loop inside of a region is translated by itself when a run enters it often", () => {
  const made = warmMachine();
  enterInner(made, 100 * HOT_ENTRIES_IN_TESTS);
  made.engine.run(100 * HOT_ENTRIES_IN_TESTS);
  expect(made.engine.counts().translator.regionsMade).toBe(2);
});

it("but not when many runs enter it a few times each", () => {
  const made = warmMachine();
  for (let run = 0; run < 10 * HOT_ENTRIES_IN_TESTS; run++) {
    enterInner(made, 100);
    expect(made.engine.run(20)).toBe("budget");
  }
  expect(made.engine.counts().translator.regionsMade).toBe(1);
});
