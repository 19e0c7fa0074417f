/** Numbers of the KVM ioctls, computed as <asm-generic/ioctl.h> does from direction, type, number and argument size. */
import { KvmClockData } from "./clock.ts";
import { KvmCpuid, KvmCpuid2 } from "./cpuid.ts";
import { KvmIoeventfd, KvmIrqfd } from "./eventfd.ts";
import {
  KvmInterrupt,
  KvmIrqchip,
  KvmIrqLevel,
  KvmIrqRouting,
  KvmLapicState,
  KvmMsi,
  KvmPitConfig,
  KvmPitState,
  KvmPitState2,
  KvmTprAccessCtl,
  KvmVapicAddr,
} from "./interrupts.ts";
import {
  KvmClearDirtyLog,
  KvmCoalescedMmioZone,
  KvmDirtyLog,
  KvmUserspaceMemoryRegion,
  KvmUserspaceMemoryRegion2,
} from "./memory.ts";
import { KvmMsrFilter, KvmMsrList, KvmMsrs, KvmX86Mce } from "./msrs.ts";
import { KvmDebugregs, KvmFpu, KvmRegs, KvmSregs, KvmSregs2, KvmTranslation, KvmXcrs, KvmXsave } from "./registers.ts";
import {
  KvmCreateDevice,
  KvmDeviceAttr,
  KvmEnableCap,
  KvmGuestDebug,
  KvmMpState,
  KvmSignalMask,
  KvmVcpuEvents,
} from "./vcpu.ts";

const KVMIO = 0xae;
const U64 = { sizeBytes: 8 };
const PMU_EVENT_FILTER = { sizeBytes: 32 };
const NESTED_STATE = { sizeBytes: 128 };

function ioc(direction: number, nr: number, sizeBytes: number): number {
  return ((direction << 30) | (sizeBytes << 16) | (KVMIO << 8) | nr) >>> 0;
}
const io = (nr: number) => ioc(0, nr, 0);
const iow = (nr: number, argument: { sizeBytes: number }) => ioc(1, nr, argument.sizeBytes);
const ior = (nr: number, argument: { sizeBytes: number }) => ioc(2, nr, argument.sizeBytes);
const iowr = (nr: number, argument: { sizeBytes: number }) => ioc(3, nr, argument.sizeBytes);

export const KVM_API_VERSION = 12;

export const Ioctl = {
  // System descriptor
  KVM_GET_API_VERSION: io(0x00),
  KVM_CREATE_VM: io(0x01),
  KVM_GET_MSR_INDEX_LIST: iowr(0x02, KvmMsrList),
  KVM_CHECK_EXTENSION: io(0x03),
  KVM_GET_VCPU_MMAP_SIZE: io(0x04),
  KVM_GET_SUPPORTED_CPUID: iowr(0x05, KvmCpuid2),
  KVM_GET_EMULATED_CPUID: iowr(0x09, KvmCpuid2),
  KVM_GET_MSR_FEATURE_INDEX_LIST: iowr(0x0a, KvmMsrList),
  KVM_X86_GET_MCE_CAP_SUPPORTED: ior(0x9d, U64),
  KVM_GET_SUPPORTED_HV_CPUID: iowr(0xc1, KvmCpuid2),

  // VM descriptor
  KVM_CREATE_VCPU: io(0x41),
  KVM_GET_DIRTY_LOG: iow(0x42, KvmDirtyLog),
  KVM_SET_NR_MMU_PAGES: io(0x44),
  KVM_GET_NR_MMU_PAGES: io(0x45),
  KVM_SET_USER_MEMORY_REGION: iow(0x46, KvmUserspaceMemoryRegion),
  KVM_SET_TSS_ADDR: io(0x47),
  KVM_SET_IDENTITY_MAP_ADDR: iow(0x48, U64),
  KVM_SET_USER_MEMORY_REGION2: iow(0x49, KvmUserspaceMemoryRegion2),
  KVM_CREATE_IRQCHIP: io(0x60),
  KVM_IRQ_LINE: iow(0x61, KvmIrqLevel),
  KVM_GET_IRQCHIP: iowr(0x62, KvmIrqchip),
  KVM_SET_IRQCHIP: ior(0x63, KvmIrqchip),
  KVM_CREATE_PIT: io(0x64),
  KVM_GET_PIT: iowr(0x65, KvmPitState),
  KVM_SET_PIT: ior(0x66, KvmPitState),
  KVM_IRQ_LINE_STATUS: iowr(0x67, KvmIrqLevel),
  KVM_REGISTER_COALESCED_MMIO: iow(0x67, KvmCoalescedMmioZone),
  KVM_UNREGISTER_COALESCED_MMIO: iow(0x68, KvmCoalescedMmioZone),
  KVM_SET_GSI_ROUTING: iow(0x6a, KvmIrqRouting),
  KVM_REINJECT_CONTROL: io(0x71),
  KVM_IRQFD: iow(0x76, KvmIrqfd),
  KVM_CREATE_PIT2: iow(0x77, KvmPitConfig),
  KVM_SET_BOOT_CPU_ID: io(0x78),
  KVM_IOEVENTFD: iow(0x79, KvmIoeventfd),
  KVM_SET_CLOCK: iow(0x7b, KvmClockData),
  KVM_GET_CLOCK: ior(0x7c, KvmClockData),
  KVM_GET_PIT2: ior(0x9f, KvmPitState2),
  KVM_SET_PIT2: iow(0xa0, KvmPitState2),
  KVM_SIGNAL_MSI: iow(0xa5, KvmMsi),
  KVM_SET_PMU_EVENT_FILTER: iow(0xb2, PMU_EVENT_FILTER),
  KVM_CLEAR_DIRTY_LOG: iowr(0xc0, KvmClearDirtyLog),
  KVM_X86_SET_MSR_FILTER: iow(0xc6, KvmMsrFilter),
  KVM_RESET_DIRTY_RINGS: io(0xc7),
  KVM_CREATE_DEVICE: iowr(0xe0, KvmCreateDevice),

  // VM and vCPU descriptors
  KVM_SET_TSC_KHZ: io(0xa2),
  KVM_GET_TSC_KHZ: io(0xa3),
  KVM_ENABLE_CAP: iow(0xa3, KvmEnableCap),
  KVM_GET_STATS_FD: io(0xce),
  KVM_SET_DEVICE_ATTR: iow(0xe1, KvmDeviceAttr),
  KVM_GET_DEVICE_ATTR: iow(0xe2, KvmDeviceAttr),
  KVM_HAS_DEVICE_ATTR: iow(0xe3, KvmDeviceAttr),

  // vCPU descriptor
  KVM_RUN: io(0x80),
  KVM_GET_REGS: ior(0x81, KvmRegs),
  KVM_SET_REGS: iow(0x82, KvmRegs),
  KVM_GET_SREGS: ior(0x83, KvmSregs),
  KVM_SET_SREGS: iow(0x84, KvmSregs),
  KVM_TRANSLATE: iowr(0x85, KvmTranslation),
  KVM_INTERRUPT: iow(0x86, KvmInterrupt),
  KVM_GET_MSRS: iowr(0x88, KvmMsrs),
  KVM_SET_MSRS: iow(0x89, KvmMsrs),
  KVM_SET_CPUID: iow(0x8a, KvmCpuid),
  KVM_SET_SIGNAL_MASK: iow(0x8b, KvmSignalMask),
  KVM_GET_FPU: ior(0x8c, KvmFpu),
  KVM_SET_FPU: iow(0x8d, KvmFpu),
  KVM_GET_LAPIC: ior(0x8e, KvmLapicState),
  KVM_SET_LAPIC: iow(0x8f, KvmLapicState),
  KVM_SET_CPUID2: iow(0x90, KvmCpuid2),
  KVM_GET_CPUID2: iowr(0x91, KvmCpuid2),
  KVM_TPR_ACCESS_REPORTING: iowr(0x92, KvmTprAccessCtl),
  KVM_SET_VAPIC_ADDR: iow(0x93, KvmVapicAddr),
  KVM_GET_MP_STATE: ior(0x98, KvmMpState),
  KVM_SET_MP_STATE: iow(0x99, KvmMpState),
  KVM_NMI: io(0x9a),
  KVM_SET_GUEST_DEBUG: iow(0x9b, KvmGuestDebug),
  KVM_X86_SETUP_MCE: iow(0x9c, U64),
  KVM_X86_SET_MCE: iow(0x9e, KvmX86Mce),
  KVM_GET_VCPU_EVENTS: ior(0x9f, KvmVcpuEvents),
  KVM_SET_VCPU_EVENTS: iow(0xa0, KvmVcpuEvents),
  KVM_GET_DEBUGREGS: ior(0xa1, KvmDebugregs),
  KVM_SET_DEBUGREGS: iow(0xa2, KvmDebugregs),
  KVM_GET_XSAVE: ior(0xa4, KvmXsave),
  KVM_SET_XSAVE: iow(0xa5, KvmXsave),
  KVM_GET_XCRS: ior(0xa6, KvmXcrs),
  KVM_SET_XCRS: iow(0xa7, KvmXcrs),
  KVM_KVMCLOCK_CTRL: io(0xad),
  KVM_SMI: io(0xb7),
  KVM_GET_NESTED_STATE: iowr(0xbe, NESTED_STATE),
  KVM_SET_NESTED_STATE: iow(0xbf, NESTED_STATE),
  KVM_GET_SREGS2: ior(0xcc, KvmSregs2),
  KVM_SET_SREGS2: iow(0xcd, KvmSregs2),
  KVM_GET_XSAVE2: ior(0xcf, KvmXsave),
} as const;

/** Name of an ioctl number, as "KVM_RUN", for logs. */
export function ioctlName(request: number): string {
  return Object.entries(Ioctl).find(([, value]) => value === request)?.[0] ?? `ioctl 0x${request.toString(16)}`;
}
