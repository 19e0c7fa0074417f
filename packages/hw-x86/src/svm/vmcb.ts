/**
 * The VMCB: a page of physical memory that VMRUN reads, that #VMEXIT writes, and that software reaches as memory. Source: AMD64
 * APM Vol. 2, Layout of VMCB; SVM Intercept Exit Codes.
 */

/** Byte offsets in the control area. */
export const Control = {
  /** u16 reads, u16 writes: bit n is CRn. */
  INTERCEPT_CR: 0x000,
  INTERCEPT_DR: 0x004,
  /** Bit n is the exception with vector n. */
  INTERCEPT_EXCEPTIONS: 0x008,
  INTERCEPT_3: 0x00c,
  INTERCEPT_4: 0x010,
  INTERCEPT_5: 0x014,
  PAUSE_FILTER_THRESHOLD: 0x03c,
  PAUSE_FILTER_COUNT: 0x03e,
  IOPM_BASE: 0x040,
  MSRPM_BASE: 0x048,
  TSC_OFFSET: 0x050,
  ASID: 0x058,
  TLB_CONTROL: 0x05c,
  V_INTERRUPT: 0x060,
  V_VECTOR: 0x064,
  INTERRUPT_STATE: 0x068,
  EXIT_CODE: 0x070,
  EXIT_INFO_1: 0x078,
  EXIT_INFO_2: 0x080,
  EXIT_INTERRUPT_INFO: 0x088,
  NESTED: 0x090,
  AVIC_BAR: 0x098,
  EVENT_INJECTION: 0x0a8,
  NESTED_CR3: 0x0b0,
  VIRTUAL_EXTENSIONS: 0x0b8,
  CLEAN: 0x0c0,
  NEXT_RIP: 0x0c8,
  BYTES_FETCHED: 0x0d0,
  INSTRUCTION_BYTES: 0x0d1,
  AVIC_BACKING_PAGE: 0x0e0,
  AVIC_LOGICAL_TABLE: 0x0f0,
  AVIC_PHYSICAL_TABLE: 0x0f8,
} as const;

/** Byte offsets of the save area, from the start of the VMCB. A segment: u16 selector, u16 attributes, u32 limit, u64 base. */
export const Save = {
  ES: 0x400,
  CS: 0x410,
  SS: 0x420,
  DS: 0x430,
  FS: 0x440,
  GS: 0x450,
  GDTR: 0x460,
  LDTR: 0x470,
  IDTR: 0x480,
  TR: 0x490,
  CPL: 0x4cb,
  EFER: 0x4d0,
  CR4: 0x548,
  CR3: 0x550,
  CR0: 0x558,
  DR7: 0x560,
  DR6: 0x568,
  RFLAGS: 0x570,
  RIP: 0x578,
  RSP: 0x5d8,
  RAX: 0x5f8,
  STAR: 0x600,
  LSTAR: 0x608,
  CSTAR: 0x610,
  SFMASK: 0x618,
  KERNEL_GS_BASE: 0x620,
  SYSENTER_CS: 0x628,
  SYSENTER_ESP: 0x630,
  SYSENTER_EIP: 0x638,
  CR2: 0x640,
  G_PAT: 0x668,
  DBGCTL: 0x670,
  BR_FROM: 0x678,
  BR_TO: 0x680,
  LAST_EXCEPTION_FROM: 0x688,
  LAST_EXCEPTION_TO: 0x690,
} as const;

/** Bits of the word at INTERCEPT_3, in the order of the exit codes from 0x60. */
export const Intercept3 = {
  intr: 1 << 0,
  nmi: 1 << 1,
  smi: 1 << 2,
  init: 1 << 3,
  vintr: 1 << 4,
  /** CR0 writes that change more than TS and MP. */
  cr0Selective: 1 << 5,
  idtrRead: 1 << 6,
  gdtrRead: 1 << 7,
  ldtrRead: 1 << 8,
  trRead: 1 << 9,
  idtrWrite: 1 << 10,
  gdtrWrite: 1 << 11,
  ldtrWrite: 1 << 12,
  trWrite: 1 << 13,
  rdtsc: 1 << 14,
  rdpmc: 1 << 15,
  pushf: 1 << 16,
  popf: 1 << 17,
  cpuid: 1 << 18,
  rsm: 1 << 19,
  iret: 1 << 20,
  softwareInterrupt: 1 << 21,
  invd: 1 << 22,
  pause: 1 << 23,
  hlt: 1 << 24,
  invlpg: 1 << 25,
  invlpga: 1 << 26,
  io: 1 << 27,
  msr: 1 << 28,
  taskSwitch: 1 << 29,
  ferrFreeze: 1 << 30,
  shutdown: 1 << 31,
} as const;

/** Bits of the word at INTERCEPT_4, in the order of the exit codes from 0x80. */
export const Intercept4 = {
  vmrun: 1 << 0,
  vmmcall: 1 << 1,
  vmload: 1 << 2,
  vmsave: 1 << 3,
  stgi: 1 << 4,
  clgi: 1 << 5,
  skinit: 1 << 6,
  rdtscp: 1 << 7,
  icebp: 1 << 8,
  wbinvd: 1 << 9,
  monitor: 1 << 10,
  mwait: 1 << 11,
  mwaitArmed: 1 << 12,
  xsetbv: 1 << 13,
  rdpru: 1 << 14,
  eferWriteTrap: 1 << 15,
  /** Bit n + 16: after writes of CRn. */
  crWriteTraps: 0xffff_0000 | 0,
} as const;

/** Bits of the word at INTERCEPT_5, in the order of the exit codes from 0xa0. The others are of instructions that this machine has not. */
export const Intercept5 = { invpcid: 1 << 2 } as const;

export const ExitCode = {
  readCr: 0x00,
  writeCr: 0x10,
  readDr: 0x20,
  writeDr: 0x30,
  exception: 0x40,
  intr: 0x60,
  nmi: 0x61,
  smi: 0x62,
  init: 0x63,
  vintr: 0x64,
  cr0Selective: 0x65,
  idtrRead: 0x66,
  gdtrRead: 0x67,
  ldtrRead: 0x68,
  trRead: 0x69,
  idtrWrite: 0x6a,
  gdtrWrite: 0x6b,
  ldtrWrite: 0x6c,
  trWrite: 0x6d,
  rdtsc: 0x6e,
  rdpmc: 0x6f,
  pushf: 0x70,
  popf: 0x71,
  cpuid: 0x72,
  rsm: 0x73,
  iret: 0x74,
  softwareInterrupt: 0x75,
  invd: 0x76,
  pause: 0x77,
  hlt: 0x78,
  invlpg: 0x79,
  invlpga: 0x7a,
  io: 0x7b,
  msr: 0x7c,
  taskSwitch: 0x7d,
  ferrFreeze: 0x7e,
  shutdown: 0x7f,
  vmrun: 0x80,
  vmmcall: 0x81,
  vmload: 0x82,
  vmsave: 0x83,
  stgi: 0x84,
  clgi: 0x85,
  skinit: 0x86,
  rdtscp: 0x87,
  icebp: 0x88,
  wbinvd: 0x89,
  monitor: 0x8a,
  mwait: 0x8b,
  mwaitArmed: 0x8c,
  xsetbv: 0x8d,
  rdpru: 0x8e,
  eferWriteTrap: 0x8f,
  crWriteTrap: 0x90,
  invpcid: 0xa2,
  nestedPageFault: 0x400,
  avicIncompleteIpi: 0x401,
  avicNoAcceleration: 0x402,
  /** Minus one, 64 bits wide in the VMCB. */
  invalid: -1,
} as const;

/** Word at V_INTERRUPT. */
export const VInterrupt = {
  tpr: 0xff,
  irq: 1 << 8,
  gif: 1 << 9,
  nmi: 1 << 11,
  nmiMask: 1 << 12,
  priorityShift: 16,
  ignoreTpr: 1 << 20,
  masking: 1 << 24,
  gifEnable: 1 << 25,
  nmiEnable: 1 << 26,
  avicEnable: 1 << 31,
} as const;

/** Low word of INTERRUPT_STATE. */
export const InterruptState = { shadow: 1, guestIf: 2 } as const;

/** Low word of EVENT_INJECTION and EXIT_INTERRUPT_INFO; the error code is the high word. */
export const Event = {
  vector: 0xff,
  typeShift: 8,
  interrupt: 0,
  nmi: 2,
  exception: 3,
  software: 4,
  errorValid: 1 << 11,
  valid: 1 << 31,
} as const;

export const TlbControl = { nothing: 0, flushAll: 1, flushAsid: 3, flushAsidKeepGlobals: 7 } as const;

/** Low word of NESTED. */
export const NESTED_PAGING = 1;
/** Low word of VIRTUAL_EXTENSIONS. */
export const VIRTUAL_LBR = 1;
export const VIRTUAL_VMLOAD_VMSAVE = 2;

const instructionCodes = new Map<number, string>(
  Object.entries(ExitCode)
    .filter(([, code]) => code >= ExitCode.intr)
    .map(([name, code]) => [code, name]),
);

/** The name of an exit code as ExitCode has it, with the number of what it is a range of. */
export function exitCodeName(code: number): string {
  const name = instructionCodes.get(code);
  if (name !== undefined) return name;
  if (code === ExitCode.invalid) return "invalid";
  for (const range of ["crWriteTrap", "exception", "writeDr", "readDr", "writeCr", "readCr"] as const)
    if (code >= ExitCode[range] && code < 0xa0) return `${range}${code - ExitCode[range]}`;
  return String(code);
}

/** Exit counters are an array: codes below 0x100 have their own place, the others the last ones. */
export function counterOfExit(code: number): number {
  if (code === ExitCode.invalid) return 0xff;
  return code >= ExitCode.nestedPageFault ? 0xf0 + (code & 0xf) : code & 0xff;
}
export function exitOfCounter(counter: number): number {
  if (counter === 0xff) return ExitCode.invalid;
  return counter >= 0xf0 ? ExitCode.nestedPageFault + (counter & 0xf) : counter;
}
