/**
 * Secondary controls that follow the guest's CPUID, so that an instruction which it does not have is #UD: by the processor where a
 * control enables the instruction, and by the exit's handler where one has it exit. The rules are those of Linux's
 * vmx_secondary_exec_control.
 */
import { SecondaryControl } from "../arch/vmx-controls.ts";
import type { CpuidEntry } from "../cpuid-table.ts";
import { hasFeature } from "../guest/cpuid-features.ts";
import type { VmxCapabilities } from "./capabilities.ts";

const FOLLOWING: readonly (readonly [control: number, isWanted: (table: readonly CpuidEntry[]) => boolean])[] = [
  // RDPID hangs by the same control. A guest that has only one of them can execute the other as well
  [SecondaryControl.enableRdtscp, (table) => hasFeature(table, "RDTSCP") || hasFeature(table, "RDPID")],
  [SecondaryControl.enableInvpcid, (table) => hasFeature(table, "INVPCID")],
  [SecondaryControl.enableXsaves, (table) => hasFeature(table, "XSAVE") && hasFeature(table, "XSAVES")],
  [SecondaryControl.rdrandExiting, (table) => !hasFeature(table, "RDRAND")],
  [SecondaryControl.rdseedExiting, (table) => !hasFeature(table, "RDSEED")],
];

/** Of what the processor offers, the controls that this file decides about. */
export const CPUID_CONTROLS = FOLLOWING.reduce((all, [control]) => all | control, 0);

/** `secondary` with these controls as the guest's CPUID has them. */
export function followCpuid(secondary: number, table: readonly CpuidEntry[], { cpuidControls }: VmxCapabilities): number {
  const wanted = FOLLOWING.reduce((all, [control, isWanted]) => (isWanted(table) ? all | control : all), 0);
  return ((secondary & ~cpuidControls) | (wanted & cpuidControls)) >>> 0;
}
