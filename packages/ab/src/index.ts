export { runCommandLine } from "./cli/main.ts";
export { type CompareOptions, compare } from "./compare.ts";
export { AbError, ExitStatus } from "./errors.ts";
export type { Plan, PlanInput } from "./plan/schema.ts";
export type { Result } from "./report/result.ts";
export { resultText } from "./report/table.ts";
