/** Control-register accesses that the masks let through to KVM. */
import { ExitReason } from "@mkvm/kvm-abi";
import { Cr0, Vector } from "../arch/registers.ts";
import { moveToCr0, moveToCr3, moveToCr4 } from "../guest/control-registers.ts";
import { in64BitMode } from "../guest/guest-cpu.ts";
import type { ExitOutcome, VcpuParts } from "../guest/vcpu-parts.ts";
import type { VmxExit } from "./exit.ts";

const AccessType = { moveTo: 0, moveFrom: 1, clts: 2, lmsw: 3 } as const;

export function handleCrAccess(vcpu: VcpuParts, exit: VmxExit): ExitOutcome {
  const { qualification, instructionLength: length } = exit;
  const register = qualification & 15;
  const gpr = (qualification >>> 8) & 15;
  switch ((qualification >>> 4) & 3) {
    case AccessType.moveTo: {
      const operand = vcpu.gpr(gpr);
      const value = in64BitMode(vcpu) ? operand : operand & 0xffff_ffffn;
      if (register === 8) return moveToCr8(vcpu, value, length);
      return finish(vcpu, moveTo(vcpu, register, value), length);
    }
    case AccessType.moveFrom:
      vcpu.setGpr(gpr, register === 8 ? BigInt(vcpu.lapic?.cr8 ?? vcpu.userCr8) : vcpu.cr3);
      return finish(vcpu, true, length);
    case AccessType.clts:
      vcpu.cr0 = vcpu.cr0 & ~Cr0.TS;
      return finish(vcpu, true, length);
    default: {
      // LMSW: PE can be set, not cleared
      const source = BigInt((qualification >>> 16) & 0xffff);
      const value = (vcpu.cr0 & ~0xen) | (source & 0xfn);
      return finish(vcpu, moveToCr0(vcpu, value), length);
    }
  }
}

function moveTo(vcpu: VcpuParts, register: number, value: bigint): boolean {
  if (register === 0) return moveToCr0(vcpu, value);
  if (register === 3) return moveToCr3(vcpu, value);
  return moveToCr4(vcpu, value);
}

function finish(vcpu: VcpuParts, accepted: boolean, length: number): ExitOutcome {
  if (accepted) vcpu.skip(length);
  else vcpu.queueException(Vector.GP, 0);
  return "resume";
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
