/**
 * Fails when a move could forget something: a field of the ABI's sections without a test, a module's state without a declaration.
 * Runs with every build; scripts/state has the declarations, docs/reference/state.md shows them.
 */
import { resolve } from "node:path";
import { problemsOf } from "./state/check.ts";
import { moduleSources } from "./state/scan.ts";

const problems = problemsOf(moduleSources(resolve(import.meta.dirname, "..")));
for (const problem of problems) console.log(`state: ${problem}`);
if (problems.length > 0) process.exitCode = 1;
