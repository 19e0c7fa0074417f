/** Control-register accesses that the masks let through to KVM. */
import { Cr0 } from "../arch/registers.ts";
import { moveToCr0 } from "../guest/control-registers.ts";
import { exitMoveFromCr, exitMoveToCr, finish } from "../guest/instruction-exits.ts";
import type { ExitOutcome, VcpuParts } from "../guest/vcpu-parts.ts";
import type { VmxExit } from "./exit.ts";

const AccessType = { moveTo: 0, moveFrom: 1, clts: 2, lmsw: 3 } as const;

export function handleCrAccess(vcpu: VcpuParts, exit: VmxExit): ExitOutcome {
  const { qualification, instructionLength: length } = exit;
  const register = qualification & 15;
  const gpr = (qualification >>> 8) & 15;
  switch ((qualification >>> 4) & 3) {
    case AccessType.moveTo:
      return exitMoveToCr(vcpu, register, gpr, length);
    case AccessType.moveFrom:
      return exitMoveFromCr(vcpu, register, gpr, length);
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
