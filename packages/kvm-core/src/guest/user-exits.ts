/** What KVM_RUN does first: takes user space's answer to the exit before. */
import { completeMmio } from "./mmio.ts";
import { completeMsrExit } from "./msr-exits.ts";
import { completePortExit } from "./port-io.ts";
import type { ExitOutcome, VcpuParts } from "./vcpu-parts.ts";

/** "exit": user space is asked again, as for the second part of an access. */
export function completeUserExit(vcpu: VcpuParts): ExitOutcome {
  if (vcpu.pendingPort !== undefined) {
    completePortExit(vcpu, vcpu.pendingPort);
    return "resume";
  }
  if (vcpu.pendingMsr !== undefined) return completeMsrExit(vcpu, vcpu.pendingMsr);
  return vcpu.emulator.pending ? completeMmio(vcpu) : "resume";
}
