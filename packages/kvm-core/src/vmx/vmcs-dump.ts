/** The fields of the current VMCS that tell why a guest cannot go on. */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { VmcsField as Vmcs } from "../arch/vmcs-fields.ts";

/** Every field that the processor supports, one `name=value` each, zero fields left out. */
export function dumpVmcs(cpu: LogicalCpu): string {
  const parts: string[] = [];
  for (const [name, field] of Object.entries(Vmcs)) {
    const value = cpu.vmx.vmread(field);
    if (cpu.vmx.status === 0 && value !== 0n) parts.push(`${name}=0x${value.toString(16)}`);
  }
  return parts.join(" ");
}
