/** What a module takes from VAC when it is loaded on an Intel processor. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import { Errno, type Kernel } from "@mkvm/kvm-abi";
import type { OwnerId, Vac } from "@mkvm/vac";
import { Msr } from "../arch/msr-index.ts";
import { probeVmx, type VmxCapabilities } from "./capabilities.ts";

/** MSRs whose guest values VAC exchanges for the host's, on the way to the guest and before user code runs. */
export const USER_RETURN_MSRS: readonly number[] = [
  Msr.IA32_STAR,
  Msr.IA32_LSTAR,
  Msr.IA32_CSTAR,
  Msr.IA32_FMASK,
  Msr.IA32_TSC_AUX,
];

export interface VacClaim {
  readonly owner: OwnerId;
  /** VAC's slots of USER_RETURN_MSRS. */
  readonly slots: readonly number[];
  readonly capabilities: VmxCapabilities;
  /** Bits of a guest-physical address. */
  readonly physicalBits: number;
}

/** The claim, or a negative errno with nothing left behind; the log says why. */
export function claimVac(kernel: Kernel<Vac, LogicalCpu>): VacClaim | number {
  const { cpu, vac, moduleName } = kernel;
  if (cpu.vendor !== "intel") {
    kernel.log("err", `${moduleName}: processors of vendor ${cpu.vendor} are not supported`);
    return -Errno.EOPNOTSUPP;
  }
  const capabilities = probeVmx(cpu);
  if (typeof capabilities === "string") {
    kernel.log("err", `${moduleName}: ${capabilities}`);
    return -Errno.EOPNOTSUPP;
  }
  const owner = vac.registerOwner(moduleName);
  if (owner < 0) return owner;
  const slots: number[] = [];
  for (const msr of USER_RETURN_MSRS) {
    const slot = vac.registerUserReturnMsr(owner as OwnerId, msr);
    if (slot < 0) {
      kernel.log("err", `${moduleName}: no user-return slot for MSR 0x${msr.toString(16)}: errno ${-slot}`);
      vac.unregisterOwner(owner as OwnerId);
      return slot;
    }
    slots.push(slot);
  }
  // Guest-physical addresses of processors that do not tell: 36 bits (SDM 2A, CPUID)
  const bits = cpu.cpuid(0x8000_0008, 0).eax & 0xff;
  return { owner: owner as OwnerId, slots, capabilities, physicalBits: bits === 0 ? 36 : bits };
}
