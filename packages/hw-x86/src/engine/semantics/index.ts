/** The semantics table: every row that the engine knows, in the order that numbers its handlers. */
import type { Instruction } from "../instruction.ts";
import { arithmetic } from "./arithmetic.ts";
import { logic } from "./logic.ts";
import { moves } from "./moves.ts";

export const instructions: readonly Instruction[] = [...arithmetic, ...logic, ...moves];
