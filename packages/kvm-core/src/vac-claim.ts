/** What a module takes from VAC when it is loaded. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import { Errno, type Kernel } from "@mkvm/kvm-abi";
import type { OwnerId, Vac } from "@mkvm/vac";
import { Msr } from "./arch/msr-index.ts";
import { probeSvm, type SvmCapabilities } from "./svm/capabilities.ts";
import { probeVmx, type VmxCapabilities } from "./vmx/capabilities.ts";

/** MSRs whose guest values VAC exchanges for the host's, on the way to the guest and before user code runs. */
const USER_RETURN_MSRS: Readonly<Record<"vmx" | "svm", readonly number[]>> = {
  vmx: [Msr.IA32_STAR, Msr.IA32_LSTAR, Msr.IA32_CSTAR, Msr.IA32_FMASK, Msr.IA32_TSC_AUX],
  // VMLOAD and VMSAVE move the others
  svm: [Msr.IA32_TSC_AUX],
};

export type VendorClaim =
  | { readonly name: "vmx"; readonly capabilities: VmxCapabilities }
  | { readonly name: "svm"; readonly capabilities: SvmCapabilities };

export interface VacClaim {
  readonly owner: OwnerId;
  /** MSRs that VAC exchanges for this module, and its slots of them. */
  readonly userReturnMsrs: readonly number[];
  readonly slots: readonly number[];
  readonly vendor: VendorClaim;
  /** Bits of a guest-physical address. */
  readonly physicalBits: number;
}

function probe(cpu: LogicalCpu): VendorClaim | string {
  if (cpu.vendor === "intel") {
    const capabilities = probeVmx(cpu);
    return typeof capabilities === "string" ? capabilities : { name: "vmx", capabilities };
  }
  const capabilities = probeSvm(cpu);
  return typeof capabilities === "string" ? capabilities : { name: "svm", capabilities };
}

/** The claim, or a negative errno with nothing left behind; the log says why. */
export function claimVac(kernel: Kernel<Vac, LogicalCpu>): VacClaim | number {
  const { cpu, vac, moduleName } = kernel;
  const vendor = probe(cpu);
  if (typeof vendor === "string") {
    kernel.log("err", `${moduleName}: ${vendor}`);
    return -Errno.EOPNOTSUPP;
  }
  const owner = vac.registerOwner(moduleName);
  if (owner < 0) return owner;
  const slots: number[] = [];
  const userReturnMsrs = USER_RETURN_MSRS[vendor.name];
  for (const msr of userReturnMsrs) {
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
  return { owner: owner as OwnerId, userReturnMsrs, slots, vendor, physicalBits: bits === 0 ? 36 : bits };
}
