import { deviceCases } from "./device-cases.ts";
import { eventCases } from "./event-cases.ts";
import { eventfdCases } from "./eventfd-cases.ts";
import type { MoveCase } from "./move-case.ts";
import { msrCases } from "./msr-cases.ts";
import { registerCases } from "./register-cases.ts";
import { runPageCases } from "./run-page-cases.ts";
import { vmCases } from "./vm-cases.ts";

/** Every test of state on the move. scripts/state pairs them with the fields of the ABI's sections. */
export const moveCases: readonly MoveCase[] = [
  ...vmCases,
  ...deviceCases,
  ...registerCases,
  ...msrCases,
  ...eventfdCases,
  ...eventCases,
  ...runPageCases,
];
