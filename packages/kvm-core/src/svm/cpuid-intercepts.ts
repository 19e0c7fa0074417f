/**
 * Intercepts that follow the guest's CPUID, so that an instruction which it does not have is #UD. SVM can take no more than these two
 * away: RDPID, RDRAND, RDSEED and XSAVES are the guest's wherever the processor has them. The rules are those of Linux's
 * svm_recalc_instruction_intercepts, under nested paging.
 */
import { Intercept2, Intercept3, VmcbControl } from "../arch/vmcb-layout.ts";
import type { CpuidEntry } from "../cpuid-table.ts";
import { hasFeature } from "../guest/cpuid-features.ts";
import type { Vmcb } from "./vmcb.ts";

export function interceptByCpuid(vmcb: Vmcb, table: readonly CpuidEntry[]): void {
  vmcb.setBit(VmcbControl.INTERCEPTS_2, Intercept2.RDTSCP, !hasFeature(table, "RDTSCP"));
  vmcb.setBit(VmcbControl.INTERCEPTS_3, Intercept3.INVPCID, !hasFeature(table, "INVPCID"));
}
