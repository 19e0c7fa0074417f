/** What comes of a guest's access that the second level did not let through. */
import { VcpuStat } from "../statistics/vcpu-statistics.ts";
import type { ExitOutcome, FaultOutcome, VcpuParts } from "./vcpu-parts.ts";

/** Counts what the MMU made of the fault. Undefined: there is no memory for the access, and the instruction is to be emulated. */
export function settleMemoryFault(vcpu: VcpuParts, outcome: FaultOutcome): ExitOutcome | undefined {
  const { words } = vcpu.statistics;
  words[VcpuStat.pf_taken]!++;
  if (typeof outcome === "number") return outcome;
  switch (outcome) {
    case "spurious":
      words[VcpuStat.pf_spurious]!++;
      return "resume";
    case "unprotected":
      words[VcpuStat.pf_fixed]!++;
      words[VcpuStat.pf_fast]!++;
      return "resume";
    case "mapped":
      words[VcpuStat.pf_fixed]!++;
      return "resume";
    default:
      words[VcpuStat.pf_emulate]!++;
      return undefined;
  }
}
