/** KVM_CHECK_EXTENSION: what is there, and nothing else. Capabilities that are not listed answer 0. */
import { Capability, GuestDebugFlag } from "@mkvm/kvm-abi";
import { SYNC_REGS_FIELDS } from "../guest/sync-regs.ts";
import { USER_MEMORY_SLOTS } from "./memory-region.ts";

/** KVM_MAX_VCPU_IDS: an APIC id has 8 bits, and 255 is broadcast. */
export const MAX_VCPU_ID = 255;

export interface CapabilityContext {
  readonly maxVcpus: number;
  readonly kvmclock: boolean;
}

const PRESENT: ReadonlySet<number> = new Set([
  Capability.KVM_CAP_IRQCHIP,
  Capability.KVM_CAP_HLT,
  Capability.KVM_CAP_USER_MEMORY,
  Capability.KVM_CAP_SET_TSS_ADDR,
  Capability.KVM_CAP_EXT_CPUID,
  Capability.KVM_CAP_NOP_IO_DELAY,
  Capability.KVM_CAP_PIT,
  Capability.KVM_CAP_MP_STATE,
  Capability.KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
  Capability.KVM_CAP_USER_NMI,
  Capability.KVM_CAP_REINJECT_CONTROL,
  Capability.KVM_CAP_IRQ_ROUTING,
  Capability.KVM_CAP_IRQ_INJECT_STATUS,
  Capability.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
  Capability.KVM_CAP_PIT2,
  Capability.KVM_CAP_SET_BOOT_CPU_ID,
  Capability.KVM_CAP_PIT_STATE2,
  Capability.KVM_CAP_SET_IDENTITY_MAP_ADDR,
  Capability.KVM_CAP_INTERNAL_ERROR_DATA,
  Capability.KVM_CAP_VCPU_EVENTS,
  Capability.KVM_CAP_INTR_SHADOW,
  Capability.KVM_CAP_DEBUGREGS,
  Capability.KVM_CAP_SET_GUEST_DEBUG,
  Capability.KVM_CAP_X86_ROBUST_SINGLESTEP,
  Capability.KVM_CAP_ENABLE_CAP,
  Capability.KVM_CAP_XSAVE,
  Capability.KVM_CAP_XCRS,
  Capability.KVM_CAP_GET_TSC_KHZ,
  Capability.KVM_CAP_TSC_DEADLINE_TIMER,
  Capability.KVM_CAP_SIGNAL_MSI,
  Capability.KVM_CAP_READONLY_MEM,
  Capability.KVM_CAP_ENABLE_CAP_VM,
  Capability.KVM_CAP_CHECK_EXTENSION_VM,
  Capability.KVM_CAP_IMMEDIATE_EXIT,
  Capability.KVM_CAP_GET_MSR_FEATURES,
  Capability.KVM_CAP_BINARY_STATS_FD,
  Capability.KVM_CAP_SREGS2,
  Capability.KVM_CAP_USER_MEMORY2,
  Capability.KVM_CAP_IOAPIC_POLARITY_IGNORED,
  Capability.KVM_CAP_IOEVENTFD,
  Capability.KVM_CAP_IOEVENTFD_NO_LENGTH,
  Capability.KVM_CAP_IOEVENTFD_ANY_LENGTH,
  Capability.KVM_CAP_IRQFD,
  Capability.KVM_CAP_IRQFD_RESAMPLE,
  Capability.KVM_CAP_X86_USER_SPACE_MSR,
  Capability.KVM_CAP_X86_MSR_FILTER,
]);

const GUEST_DEBUG_FLAGS = Object.values(GuestDebugFlag).reduce((all, flag) => all | flag, 0);
/** Flags of KVM_SET_CLOCK and KVM_GET_CLOCK. */
const CLOCK_FLAGS = 2 | 4 | 8;

export function checkExtension(capability: number, context: CapabilityContext): number {
  if (PRESENT.has(capability)) return 1;
  switch (capability) {
    case Capability.KVM_CAP_NR_VCPUS:
    case Capability.KVM_CAP_MAX_VCPUS:
      return context.maxVcpus;
    case Capability.KVM_CAP_MAX_VCPU_ID:
      return MAX_VCPU_ID;
    case Capability.KVM_CAP_NR_MEMSLOTS:
      return USER_MEMORY_SLOTS;
    case Capability.KVM_CAP_SET_GUEST_DEBUG2:
      return GUEST_DEBUG_FLAGS;
    case Capability.KVM_CAP_SYNC_REGS:
      return SYNC_REGS_FIELDS;
    case Capability.KVM_CAP_XSAVE2:
      return 4096;
    case Capability.KVM_CAP_VM_TYPES:
      return 1;
    case Capability.KVM_CAP_CLOCKSOURCE:
    case Capability.KVM_CAP_KVMCLOCK_CTRL:
      return context.kvmclock ? 1 : 0;
    case Capability.KVM_CAP_ADJUST_CLOCK:
      return context.kvmclock ? CLOCK_FLAGS : 0;
    default:
      return 0;
  }
}
