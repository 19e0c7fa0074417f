/** Basic exit reasons (SDM 3D, appendix "VMX Basic Exit Reasons"). */
export const VmxExit = {
  EXCEPTION_NMI: 0,
  EXTERNAL_INTERRUPT: 1,
  TRIPLE_FAULT: 2,
  INIT_SIGNAL: 3,
  SIPI_SIGNAL: 4,
  INTERRUPT_WINDOW: 7,
  NMI_WINDOW: 8,
  TASK_SWITCH: 9,
  CPUID: 10,
  HLT: 12,
  INVD: 13,
  INVLPG: 14,
  RDPMC: 15,
  RDTSC: 16,
  VMCALL: 18,
  VMCLEAR: 19,
  VMXOFF: 26,
  VMXON: 27,
  CR_ACCESS: 28,
  DR_ACCESS: 29,
  IO_INSTRUCTION: 30,
  MSR_READ: 31,
  MSR_WRITE: 32,
  INVALID_STATE: 33,
  MSR_LOAD_FAIL: 34,
  MWAIT: 36,
  MONITOR: 39,
  PAUSE: 40,
  MCE_DURING_ENTRY: 41,
  TPR_BELOW_THRESHOLD: 43,
  APIC_ACCESS: 44,
  GDTR_IDTR: 46,
  LDTR_TR: 47,
  EPT_VIOLATION: 48,
  EPT_MISCONFIG: 49,
  INVEPT: 50,
  RDTSCP: 51,
  PREEMPTION_TIMER: 52,
  INVVPID: 53,
  WBINVD: 54,
  XSETBV: 55,
  RDRAND: 57,
  INVPCID: 58,
} as const;

/** Bit 31 of the exit reason: VM entry failed. */
export const ENTRY_FAILURE = 0x8000_0000;

export function vmxExitName(reason: number): string {
  return Object.entries(VmxExit).find(([, value]) => value === (reason & 0xffff))?.[0] ?? `exit reason ${reason & 0xffff}`;
}

/** Interruption information: vector in bits 7:0, type in 10:8, error code valid 11, valid 31. */
export const IntrType = {
  EXTERNAL: 0,
  NMI: 2,
  HARD_EXCEPTION: 3,
  SOFT_INTERRUPT: 4,
  PRIV_SOFT_EXCEPTION: 5,
  SOFT_EXCEPTION: 6,
} as const;
export const INTR_INFO_VALID = 0x8000_0000;
export const INTR_INFO_ERROR_CODE = 1 << 11;
/** Guest interruptibility state. */
export const Interruptibility = { STI: 1, MOV_SS: 2, SMI: 4, NMI: 8 } as const;
