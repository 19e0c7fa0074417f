/** Where regions are entered: in the middle too where code comes there often, but not where only the ends of runs leave them. */
import { expect, it } from "vitest";
import { RAX, RCX, RDX, state } from "../src/engine/cpu-state.ts";
import { HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
const INNER = CODE + 10;
/** again: inc eax; test al, 7; jnz skip; mov dl, 4; inner: dec edx; jnz inner; skip: dec ecx; jnz again; hlt */
const LOOPS = [0xff, 0xc0, 0xa8, 7, 0x75, 8, 0xb2, 4, 0x66, 0x90, 0xff, 0xca, 0x75, 0xfc, 0xff, 0xc9, 0x75, 0xee, 0xf4];
/** Rounds of the outer loop after which the region with both is there. */
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
  engine.setReg(RCX, 1n);
};

it("a region is made anew when the interpreter runs much inside of it, and is then entered there", () => {
  const made = warmMachine();
  const { engine } = made;
  const rounds = 500 * HOT_ENTRIES_IN_TESTS;
  for (let time = 0; time < 2; time++) {
    enterInner(made, rounds);
    expect(engine.run(20 * rounds)).toBe("halted");
    engine.set32(state.activity, 0);
    expect(engine.reg(RDX)).toBe(0n);
    // The second time has nothing left to ask for
    expect(engine.counts().translator).toMatchObject({ regionsMade: 2, regionsRemade: 1, regionsInUse: 1 });
  }
});

it("but not when many runs enter it a few times each, however much that adds up to", () => {
  const made = warmMachine();
  for (let run = 0; run < 40 * HOT_ENTRIES_IN_TESTS; run++) {
    enterInner(made, 100);
    expect(made.engine.run(20)).toBe("budget");
  }
  expect(made.engine.counts().translator.regionsMade).toBe(1);
});

it("what a region with further entries is made from may change like any other's", () => {
  const made = warmMachine();
  const { engine } = made;
  enterInner(made, 500 * HOT_ENTRIES_IN_TESTS);
  engine.run(2000 * HOT_ENTRIES_IN_TESTS);
  engine.set32(state.activity, 0);
  // inner: dec edx becomes dec eax, whose flags the loop then ends by
  engine.writeLinear(BigInt(INNER + 1) as never, 1, 0xc8n, true);
  expect(engine.counts().translator.regionsInUse).toBe(0);
  enterInner(made, 5);
  engine.setReg(RAX, 7n);
  expect(engine.run(1000)).toBe("halted");
  expect([engine.reg(RAX), engine.reg(RDX)]).toEqual([0n, 5n]);
});
