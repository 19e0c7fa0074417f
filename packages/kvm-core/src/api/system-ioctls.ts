/** ioctls of the system descriptor (/dev/kvmN) but for KVM_CREATE_VM, which each version does itself. */

import type { LogicalCpu } from "@mkvm/hw-x86";
import { Errno, type Hva, Ioctl, KVM_API_VERSION, type Process, VCPU_MMAP_SIZE_BYTES } from "@mkvm/kvm-abi";
import { Msr } from "../arch/msr-index.ts";
import { type CpuidEntry, supportedCpuid } from "../cpuid-table.ts";
import { CLOCK_MSRS, MODULE_MSRS } from "../guest/msr-access.ts";
import { MSR_INDEX_LIST } from "../msr-table.ts";
import { type CapabilityContext, checkExtension } from "./capabilities.ts";
import { copyCpuidOut } from "./cpuid-ioctls.ts";
import { copyMsrList, getMsrs } from "./msr-ioctls.ts";

const KVM_CPUID_FEATURES = 0x4000_0001;
const CLOCKSOURCE_FEATURES = (1 << 0) | (1 << 3) | (1 << 24);
/** MSRs that tell what the processor is: KVM_GET_MSRS on the system descriptor. */
const FEATURE_MSRS: readonly number[] = [Msr.IA32_ARCH_CAPABILITIES];

export interface SystemContext extends CapabilityContext {
  readonly cpu: LogicalCpu;
}

/** The table of KVM_GET_SUPPORTED_CPUID, less what a module parameter turns off. */
export function offeredCpuid(context: SystemContext): CpuidEntry[] {
  const table = supportedCpuid((leaf, subleaf) => context.cpu.cpuid(leaf, subleaf));
  if (context.kvmclock) return table;
  return table.map((entry) =>
    entry.function === KVM_CPUID_FEATURES ? { ...entry, eax: (entry.eax & ~CLOCKSOURCE_FEATURES) >>> 0 } : entry,
  );
}

/** -ENOTTY for ioctls that are not here. */
export function systemIoctl(context: SystemContext, process: Process, request: number, argument: Hva): number {
  switch (request) {
    case Ioctl.KVM_GET_API_VERSION:
      return argument === 0 ? KVM_API_VERSION : -Errno.EINVAL;
    case Ioctl.KVM_CHECK_EXTENSION:
      return checkExtension(argument, context);
    case Ioctl.KVM_GET_VCPU_MMAP_SIZE:
      return argument === 0 ? VCPU_MMAP_SIZE_BYTES : -Errno.EINVAL;
    case Ioctl.KVM_GET_SUPPORTED_CPUID:
      return copyCpuidOut(process, argument, offeredCpuid(context), false);
    case Ioctl.KVM_GET_EMULATED_CPUID:
      return copyCpuidOut(process, argument, [], false);
    case Ioctl.KVM_GET_MSR_INDEX_LIST: {
      const clock = context.kvmclock ? CLOCK_MSRS : [];
      const all = new Set([...MSR_INDEX_LIST, ...MODULE_MSRS, ...clock]);
      if (!context.kvmclock) for (const index of CLOCK_MSRS) all.delete(index);
      return copyMsrList(
        process,
        argument,
        [...all].sort((a, b) => a - b),
      );
    }
    case Ioctl.KVM_GET_MSR_FEATURE_INDEX_LIST:
      return copyMsrList(process, argument, FEATURE_MSRS);
    case Ioctl.KVM_GET_MSRS:
      return getMsrs(process, argument, (index) =>
        FEATURE_MSRS.includes(index) ? (context.cpu.rdmsr(index) ?? 0n) : undefined,
      );
    default:
      return -Errno.ENOTTY;
  }
}
