/** The code of a region does not depend on where its blocks and pages lie, so that VMs share what the host's compiler makes of it. */
import { expect, test } from "vitest";
import { gprOffset, RCX, state } from "../src/engine/cpu-state.ts";
import { captureModules } from "./captured-modules.ts";
import { createFlatMachine } from "./flat-machine.ts";

const ROUNDS = 5000;
/** Two pages: a loop that calls a function in the next one, which adds to RAX what lies at the stack's top. */
const LOOP = [0xe8, 0xfb, 0x0f, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf6, 0xf4];
const FUNCTION = [0x48, 0x03, 0x04, 0x24, 0xc3];

/** Modules of the regions made when the code lies at `at`, after other code has taken room among the operations. */
function regionsOf(at: number, before: number[]): { modules: Uint8Array[]; sum: bigint } {
  const { engine, ram } = createFlatMachine(64, 4 << 20, "hot");
  ram.set([...before, 0xf4], 0x8000);
  engine.set64(state.rip, 0x8000n);
  engine.run(100);
  engine.set64(state.rip, BigInt(at));
  engine.i32[state.activity >>> 2] = 0;
  ram.set(LOOP, at);
  ram.set(FUNCTION, at + 0x1000);
  engine.setReg(RCX, BigInt(ROUNDS));
  engine.setReg(4, 0x20_0000n);
  const modules = captureModules(() => engine.run(1_000_000));
  return { modules, sum: engine.u64[gprOffset(0) >>> 3] as bigint };
}

test("the same code elsewhere is the same module, and runs there", () => {
  const first = regionsOf(0x1_0000, []);
  const second = regionsOf(0x5_0000, [0x90, 0x90, 0x90]);
  expect(first.modules.length).toBeGreaterThan(0);
  expect(second.modules).toEqual(first.modules);
  // What is added is the address that the function returns to
  expect(first.sum).toBe(BigInt(ROUNDS) * 0x1_0005n);
  expect(second.sum).toBe(BigInt(ROUNDS) * 0x5_0005n);
});
