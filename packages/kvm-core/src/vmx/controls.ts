/** VM-execution, VM-exit and VM-entry controls (SDM 3C, "Virtual Machine Control Structures") and how their capability MSRs bound them. */
import type { LogicalCpu } from "@mkvm/hw-x86";

export const Pin = {
  EXTERNAL_INTERRUPT_EXITING: 1 << 0,
  NMI_EXITING: 1 << 3,
  VIRTUAL_NMIS: 1 << 5,
  PREEMPTION_TIMER: 1 << 6,
} as const;
export const Cpu1 = {
  INTERRUPT_WINDOW_EXITING: 1 << 2,
  USE_TSC_OFFSETTING: 1 << 3,
  HLT_EXITING: 1 << 7,
  INVLPG_EXITING: 1 << 9,
  MWAIT_EXITING: 1 << 10,
  RDPMC_EXITING: 1 << 11,
  RDTSC_EXITING: 1 << 12,
  CR3_LOAD_EXITING: 1 << 15,
  CR3_STORE_EXITING: 1 << 16,
  CR8_LOAD_EXITING: 1 << 19,
  CR8_STORE_EXITING: 1 << 20,
  USE_TPR_SHADOW: 1 << 21,
  NMI_WINDOW_EXITING: 1 << 22,
  MOV_DR_EXITING: 1 << 23,
  UNCONDITIONAL_IO_EXITING: 1 << 24,
  USE_IO_BITMAPS: 1 << 25,
  USE_MSR_BITMAPS: 1 << 28,
  MONITOR_EXITING: 1 << 29,
  PAUSE_EXITING: 1 << 30,
  ACTIVATE_SECONDARY: 0x8000_0000,
} as const;
export const Cpu2 = {
  ENABLE_EPT: 1 << 1,
  ENABLE_RDTSCP: 1 << 3,
  ENABLE_VPID: 1 << 5,
  WBINVD_EXITING: 1 << 6,
  UNRESTRICTED_GUEST: 1 << 7,
  PAUSE_LOOP_EXITING: 1 << 10,
  RDRAND_EXITING: 1 << 11,
  ENABLE_INVPCID: 1 << 12,
  ENABLE_XSAVES: 1 << 20,
} as const;
export const Exit = {
  SAVE_DEBUG_CONTROLS: 1 << 2,
  HOST_ADDRESS_SPACE_SIZE: 1 << 9,
  ACK_INTERRUPT_ON_EXIT: 1 << 15,
  SAVE_IA32_PAT: 1 << 18,
  LOAD_IA32_PAT: 1 << 19,
  SAVE_IA32_EFER: 1 << 20,
  LOAD_IA32_EFER: 1 << 21,
} as const;
export const Entry = {
  LOAD_DEBUG_CONTROLS: 1 << 2,
  IA32E_MODE: 1 << 9,
  LOAD_IA32_PAT: 1 << 14,
  LOAD_IA32_EFER: 1 << 15,
} as const;

/** EPT and VPID capabilities that a module can use (MSR IA32_VMX_EPT_VPID_CAP). */
export interface EptCapabilities {
  readonly pages2m: boolean;
  readonly accessedDirty: boolean;
  readonly inveptSingle: boolean;
  readonly inveptGlobal: boolean;
  readonly invvpidSingle: boolean;
  readonly invvpidAddress: boolean;
}

export interface VmxCapabilities {
  readonly revision: number;
  readonly pin: number;
  readonly cpu1: number;
  readonly cpu2: number;
  readonly exit: number;
  readonly entry: number;
  readonly ept: EptCapabilities;
  readonly cr0Fixed0: bigint;
  readonly cr0Fixed1: bigint;
  readonly cr4Fixed0: bigint;
  readonly cr4Fixed1: bigint;
}

const MSR_VMX_BASIC = 0x480;

/** `required` bits with the ones that the processor wants set; undefined when it lacks one of them. */
function adjust(allowed: bigint, required: number, optional: number): number | undefined {
  const mustBe1 = Number(allowed & 0xffff_ffffn);
  const mayBe1 = Number(allowed >> 32n);
  const value = (((required | optional) & mayBe1) | mustBe1) >>> 0;
  return (required & ~value) === 0 ? value : undefined;
}

/**
 * Reads the capability MSRs and settles the controls that a module runs its guests with; a string names what is missing.
 * TRUE control MSRs are used when IA32_VMX_BASIC bit 55 offers them.
 */
export function probeVmx(cpu: LogicalCpu): VmxCapabilities | string {
  const feature = cpu.cpuid(1, 0);
  if ((feature.ecx & (1 << 5)) === 0) return "the processor has no VMX (CPUID.1:ECX.VMX)";
  const read = (index: number): bigint => cpu.rdmsr(index) ?? 0n;
  const basic = read(MSR_VMX_BASIC);
  if (basic === 0n) return "IA32_VMX_BASIC is not readable";
  const base = (basic >> 55n) & 1n ? 0x48d : 0x481;
  const pin = adjust(read(base), Pin.EXTERNAL_INTERRUPT_EXITING | Pin.NMI_EXITING | Pin.VIRTUAL_NMIS, 0);
  const cpu1 = adjust(
    read(base + 1),
    Cpu1.HLT_EXITING | Cpu1.USE_TSC_OFFSETTING | Cpu1.USE_MSR_BITMAPS | Cpu1.UNCONDITIONAL_IO_EXITING | Cpu1.ACTIVATE_SECONDARY,
    Cpu1.MWAIT_EXITING | Cpu1.MONITOR_EXITING | Cpu1.RDPMC_EXITING | Cpu1.CR8_LOAD_EXITING | Cpu1.CR8_STORE_EXITING,
  );
  const exit = adjust(
    read(base + 2),
    Exit.HOST_ADDRESS_SPACE_SIZE | Exit.LOAD_IA32_EFER | Exit.SAVE_IA32_EFER | Exit.SAVE_DEBUG_CONTROLS,
    Exit.LOAD_IA32_PAT | Exit.SAVE_IA32_PAT,
  );
  const entry = adjust(read(base + 3), Entry.LOAD_IA32_EFER | Entry.LOAD_DEBUG_CONTROLS, Entry.LOAD_IA32_PAT);
  const cpu2 = adjust(
    read(0x48b),
    Cpu2.ENABLE_EPT | Cpu2.ENABLE_VPID | Cpu2.UNRESTRICTED_GUEST,
    Cpu2.WBINVD_EXITING | Cpu2.ENABLE_RDTSCP | Cpu2.ENABLE_INVPCID,
  );
  if (pin === undefined) return "a pin-based control that KVM needs (external interrupts, NMIs) is missing";
  if (cpu1 === undefined) return "a primary processor-based control that KVM needs is missing";
  if (cpu2 === undefined) return "EPT, VPID or unrestricted guest is missing";
  if (exit === undefined || entry === undefined) return "a VM-exit or VM-entry control that KVM needs (IA32_EFER) is missing";
  const cap = read(0x48c);
  const bit = (position: number): boolean => ((cap >> BigInt(position)) & 1n) !== 0n;
  if (!bit(6) || !bit(14)) return "EPT with 4-level walks and write-back tables is missing";
  return {
    revision: Number(basic & 0x7fff_ffffn),
    // Bits 7, 8, 15 and 16 of the primary and similar "default 1" bits arrive through `adjust`
    pin,
    cpu1,
    cpu2,
    exit,
    entry,
    ept: {
      pages2m: bit(16),
      accessedDirty: bit(21),
      inveptSingle: bit(25),
      inveptGlobal: bit(26),
      invvpidSingle: bit(41),
      invvpidAddress: bit(40),
    },
    cr0Fixed0: read(0x486),
    cr0Fixed1: read(0x487),
    cr4Fixed0: read(0x488),
    cr4Fixed1: read(0x489),
  };
}
