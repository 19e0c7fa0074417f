/** Whether a move could begin now, without beginning it: for those who plan many. */
import { HostError, messageOf } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";
import { describeProblem } from "./answers.ts";
import { faultOfVms, moduleOfVms } from "./move.ts";
import { featureLevel, firstUnknownSection } from "./sections.ts";

/** Why not; null when it could. What only `prepare` finds out is not known yet. */
export function blockerOfMove(process: KernelProcess, toName: string): string | null {
  const { modules } = process.kernel;
  try {
    const from = moduleOfVms(process);
    const to = modules.get(toName);
    if (!to || to.seized) return `no module ${toName} is loaded`;
    if (from === to) return `it is on ${toName} already`;
    if (process.ending) return "it is ending";
    if (process.standstill) return `it is ${process.standstill.doing}`;
    const fault = faultOfVms(process, from);
    if (fault) return fault;
    const wayBack = [from.name, ...process.previous].flatMap((name) => modules.get(name) ?? []);
    const level = featureLevel([to, ...wayBack].map((module) => module.instance.transfer.receives));
    process.kernel.current = process;
    for (const [, file] of process.moduleFiles()) {
      if (from.instance.transfer.roleOf(file).kind !== "vm") continue;
      const description = from.instance.transfer.describe(file, level);
      const problem = describeProblem(description);
      if (problem) return `${from.name}: ${problem}`;
      const unknown =
        firstUnknownSection(description, to.instance.transfer.receives, to.name) ??
        firstUnknownSection(description, level, "a module that it could roll back to");
      if (unknown) return unknown;
    }
    return null;
  } catch (thrown) {
    return thrown instanceof HostError ? thrown.message : `it cannot be described: ${messageOf(thrown)}`;
  }
}
