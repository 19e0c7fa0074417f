/**
 * Helpers: the parts of instructions that are too rare or too intricate for generated code, in TypeScript over the same CPU
 * state. A row calls one by name with `e.helper(name, ...)`; each subject registers its own in one table, joined here.
 *
 * Before a helper runs, `state.rip` is that of the instruction and the retired count excludes it. A helper
 *   - returns a 32-bit integer (or nothing);
 *   - raises an exception with `cpu.raise(vector, errorCode)`, which throws;
 *   - may call `cpu.guest.*`, which may throw VM_EXIT;
 *   - must have changed nothing when it throws, except where the manual says otherwise;
 *   - of a "helperThenEndBlock" may set `state.rip`; if it does it calls `cpu.setNextRip(value)`.
 */
import type { Cpu } from "./cpu.ts";

export type Helper = (cpu: Cpu, a: number, b: number, c: number, d: number) => number | void;
export type HelperTable = Readonly<Record<string, Helper>>;
