/** #VMEXIT codes. Source: AMD64 APM Vol. 2, SVM Intercept Exit Codes. */
export const SvmExitCode = {
  READ_CR8: 0x08,
  WRITE_CR4: 0x14,
  WRITE_CR8: 0x18,
  /** Debug registers: this plus the number. */
  READ_DR0: 0x20,
  WRITE_DR0: 0x30,
  /** Exceptions: this plus the vector. */
  EXCEPTION: 0x40,
  EXCEPTION_DB: 0x41,
  EXCEPTION_BP: 0x43,
  INTR: 0x60,
  NMI: 0x61,
  SMI: 0x62,
  INIT: 0x63,
  VINTR: 0x64,
  RDPMC: 0x6f,
  CPUID: 0x72,
  IRET: 0x74,
  INVD: 0x76,
  PAUSE: 0x77,
  HLT: 0x78,
  INVLPGA: 0x7a,
  IOIO: 0x7b,
  MSR: 0x7c,
  TASK_SWITCH: 0x7d,
  SHUTDOWN: 0x7f,
  VMRUN: 0x80,
  VMMCALL: 0x81,
  VMLOAD: 0x82,
  VMSAVE: 0x83,
  STGI: 0x84,
  CLGI: 0x85,
  SKINIT: 0x86,
  RDTSCP: 0x87,
  WBINVD: 0x89,
  MONITOR: 0x8a,
  MWAIT: 0x8b,
  XSETBV: 0x8d,
  INVPCID: 0xa2,
  NPF: 0x400,
  /** -1 in the low word: the VMCB is not one that VMRUN takes. */
  INVALID: 0xffff_ffff,
} as const;

/** Name of an exit code, as "NPF". */
export function svmExitCodeName(code: number): string {
  return Object.entries(SvmExitCode).find(([, value]) => value === code)?.[0] ?? `exit code 0x${code.toString(16)}`;
}
