/** Instructions that exit on either vendor's processors, once it is known which one it was. `length`: of the instruction. */
import { ExitReason } from "@mkvm/kvm-abi";
import { Gpr, Vector } from "../arch/registers.ts";
import { executeCpuid } from "../cpuid-table.ts";
import { VcpuStat } from "../statistics/vcpu-statistics.ts";
import { moveToCr0, moveToCr3, moveToCr4, setXcr } from "./control-registers.ts";
import { cpl, in64BitMode } from "./guest-cpu.ts";
import { handleHypercall } from "./hypercall.ts";
import type { ExitOutcome, VcpuParts } from "./vcpu-parts.ts";

const LOW_32 = 0xffff_ffffn;

export function generalProtection(vcpu: VcpuParts): ExitOutcome {
  vcpu.queueException(Vector.GP, 0);
  return "resume";
}
export function undefinedOpcode(vcpu: VcpuParts): ExitOutcome {
  vcpu.queueException(Vector.UD);
  return "resume";
}
/** The instruction is done, or was #GP. */
export function finish(vcpu: VcpuParts, accepted: boolean, length: number): ExitOutcome {
  if (!accepted) return generalProtection(vcpu);
  vcpu.skip(length);
  return "resume";
}

export function edxEax(vcpu: VcpuParts): bigint {
  return (BigInt(vcpu.gpr32(Gpr.RDX)) << 32n) | BigInt(vcpu.gpr32(Gpr.RAX));
}

export function exitCpuid(vcpu: VcpuParts, length: number): ExitOutcome {
  const result = executeCpuid(vcpu.cpuid, vcpu, vcpu.gpr32(Gpr.RAX), vcpu.gpr32(Gpr.RCX));
  vcpu.setGpr32(Gpr.RAX, result.eax);
  vcpu.setGpr32(Gpr.RBX, result.ebx);
  vcpu.setGpr32(Gpr.RCX, result.ecx);
  vcpu.setGpr32(Gpr.RDX, result.edx);
  return finish(vcpu, true, length);
}
export function exitXsetbv(vcpu: VcpuParts, length: number): ExitOutcome {
  return finish(vcpu, cpl(vcpu) === 0 && setXcr(vcpu, vcpu.gpr32(Gpr.RCX), edxEax(vcpu)), length);
}
export function exitHlt(vcpu: VcpuParts, length: number): ExitOutcome {
  vcpu.statistics.words[VcpuStat.halt_exits]!++;
  vcpu.skip(length);
  return "halt";
}
export function exitHypercall(vcpu: VcpuParts, length: number): ExitOutcome {
  handleHypercall(vcpu);
  return finish(vcpu, true, length);
}
export function exitShutdown(vcpu: VcpuParts): ExitOutcome {
  vcpu.run.exitReason = ExitReason.KVM_EXIT_SHUTDOWN;
  return "exit";
}

/** MOV to a control register from general register `gpr`. */
export function exitMoveToCr(vcpu: VcpuParts, register: number, gpr: number, length: number): ExitOutcome {
  const operand = vcpu.gpr(gpr);
  const value = in64BitMode(vcpu) ? operand : operand & LOW_32;
  if (register === 8) return moveToCr8(vcpu, value, length);
  if (register === 0) return finish(vcpu, moveToCr0(vcpu, value), length);
  if (register === 3) return finish(vcpu, moveToCr3(vcpu, value), length);
  return finish(vcpu, moveToCr4(vcpu, value), length);
}
/** MOV from CR3 or CR8. */
export function exitMoveFromCr(vcpu: VcpuParts, register: number, gpr: number, length: number): ExitOutcome {
  vcpu.setGpr(gpr, register === 8 ? BigInt(vcpu.lapic?.cr8 ?? vcpu.userCr8) : vcpu.cr3);
  return finish(vcpu, true, length);
}

/** The task priority: in the in-kernel APIC, or with user space, which is told when it goes down. */
function moveToCr8(vcpu: VcpuParts, value: bigint, length: number): ExitOutcome {
  if (value > 15n) return finish(vcpu, false, length);
  const priority = Number(value);
  vcpu.skip(length);
  if (vcpu.lapic !== undefined) {
    vcpu.lapic.setCr8(priority);
    return "resume";
  }
  const before = vcpu.userCr8;
  vcpu.userCr8 = priority;
  if (priority >= before) return "resume";
  vcpu.run.exitReason = ExitReason.KVM_EXIT_SET_TPR;
  return "exit";
}
