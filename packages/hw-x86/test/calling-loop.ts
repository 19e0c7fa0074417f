/** A loop that calls a function, for tests of translated code. */
import { expect } from "vitest";
import { RAX, RCX, state } from "../src/engine/cpu-state.ts";
import type { FlatMachine } from "./flat-machine.ts";

export const CODE = 0x20_0000;
export const ROUNDS = 50_000;

export const bytes32 = (value: number): number[] => [value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255];

/** At CODE: again: call `callee`; dec ecx; jnz again; hlt. */
export function writeLoop({ ram }: FlatMachine, callee: number): void {
  ram.set([0xe8, ...bytes32(callee - CODE - 5), 0xff, 0xc9, 0x75, 0xf7, 0xf4], CODE);
}

/** Runs it for ROUNDS rounds of so many instructions, five with a function of two; gives RAX, which was 0. */
export function runLoop({ engine }: FlatMachine, instructions = 5): bigint {
  engine.set64(state.rip, BigInt(CODE));
  engine.set32(state.activity, 0);
  engine.setReg(4, BigInt(CODE + 0x10_0000));
  engine.setReg(RAX, 0n);
  engine.setReg(RCX, BigInt(ROUNDS));
  const before = engine.retired();
  expect(engine.run(10 * ROUNDS)).toBe("halted");
  expect(engine.retired() - before).toBe(instructions * ROUNDS + 1);
  return engine.reg(RAX);
}
