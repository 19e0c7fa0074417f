/** RDMSR and WRMSR that exit: what the vCPU has, or a refusal, which is #GP or user space's to answer (KVM_CAP_X86_USER_SPACE_MSR). */
import { ExitReason, MsrExitReason } from "@mkvm/kvm-abi";
import { Gpr } from "../arch/registers.ts";
import { edxEax, finish, generalProtection } from "./instruction-exits.ts";
import { guestRdmsr, guestWrmsr, type MsrRefusal } from "./msr-access.ts";
import type { ExitOutcome, PendingMsr, VcpuParts } from "./vcpu-parts.ts";

const LOW_32 = 0xffff_ffffn;
const REASONS: Readonly<Record<MsrRefusal, number>> = {
  unknown: MsrExitReason.KVM_MSR_EXIT_REASON_UNKNOWN,
  refused: MsrExitReason.KVM_MSR_EXIT_REASON_INVAL,
  filtered: MsrExitReason.KVM_MSR_EXIT_REASON_FILTER,
};

export function exitRdmsr(vcpu: VcpuParts, length: number): ExitOutcome {
  const index = vcpu.gpr32(Gpr.RCX);
  const value = guestRdmsr(vcpu, index);
  if (typeof value === "string") return refuse(vcpu, value, 0n, { isWrite: false, index, instructionLength: length });
  return read(vcpu, value, length);
}
export function exitWrmsr(vcpu: VcpuParts, length: number): ExitOutcome {
  const index = vcpu.gpr32(Gpr.RCX);
  const value = edxEax(vcpu);
  const result = guestWrmsr(vcpu, index, value);
  if (result !== "ok") return refuse(vcpu, result, value, { isWrite: true, index, instructionLength: length });
  return finish(vcpu, true, length);
}

function read(vcpu: VcpuParts, value: bigint, length: number): ExitOutcome {
  vcpu.setGpr(Gpr.RAX, value & LOW_32);
  vcpu.setGpr(Gpr.RDX, value >> 32n);
  return finish(vcpu, true, length);
}

function refuse(vcpu: VcpuParts, refusal: MsrRefusal, data: bigint, pending: PendingMsr): ExitOutcome {
  const reason = REASONS[refusal];
  if ((vcpu.vm.settings.msrExitReasons & reason) === 0) return generalProtection(vcpu);
  vcpu.run.exitReason = pending.isWrite ? ExitReason.KVM_EXIT_X86_WRMSR : ExitReason.KVM_EXIT_X86_RDMSR;
  vcpu.run.setMsr(reason, pending.index, data);
  vcpu.pendingMsr = pending;
  return "exit";
}

/** KVM_RUN after KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR: user space has said #GP, or that it is done, with what was read. */
export function completeMsrExit(vcpu: VcpuParts, { isWrite, instructionLength }: PendingMsr): ExitOutcome {
  vcpu.pendingMsr = undefined;
  const { failed, data } = vcpu.run.msrAnswer;
  if (failed) return generalProtection(vcpu);
  return isWrite ? finish(vcpu, true, instructionLength) : read(vcpu, data, instructionLength);
}
