/** The semantics table: every row that the engine knows, in the order that numbers its handlers. */
import type { Instruction } from "../instruction.ts";
import { arithmetic } from "./arithmetic.ts";
import { bitManipulation } from "./bit-manipulation.ts";
import { bits } from "./bits.ts";
import { control } from "./control.ts";
import { decimal } from "./decimal.ts";
import { farTransfers } from "./far-transfers.ts";
import { flagControl } from "./flag-control.ts";
import { floatingPoint } from "./floating-point.ts";
import { comparableExtensions, machineExtensions } from "./integer-extensions.ts";
import { io } from "./io.ts";
import { logic } from "./logic.ts";
import { moves } from "./moves.ts";
import { segments } from "./segments.ts";
import { shifts } from "./shifts.ts";
import { stack } from "./stack.ts";
import { strings } from "./strings.ts";
import { system } from "./system.ts";
import { xsave } from "./xsave.ts";

export const instructions: readonly Instruction[] = [
  ...arithmetic,
  ...logic,
  ...shifts,
  ...bits,
  ...moves,
  ...stack,
  ...control,
  ...strings,
  ...flagControl,
  ...decimal,
  ...floatingPoint,
  ...system,
  ...xsave,
  ...segments,
  ...farTransfers,
  ...io,
  ...comparableExtensions,
  ...bitManipulation,
  ...machineExtensions,
];
