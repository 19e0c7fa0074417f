/** Offsets in the VMCB. Source: AMD64 APM Vol. 2, Layout of VMCB: VMCB Layout, Control Area; VMCB Layout, State Save Area. */
export const VmcbControl = {
  CR_INTERCEPTS: 0x00,
  DR_INTERCEPTS: 0x04,
  EXCEPTION_INTERCEPTS: 0x08,
  INTERCEPTS_1: 0x0c,
  INTERCEPTS_2: 0x10,
  INTERCEPTS_3: 0x14,
  IOPM_BASE_PA: 0x40,
  MSRPM_BASE_PA: 0x48,
  TSC_OFFSET: 0x50,
  GUEST_ASID: 0x58,
  TLB_CONTROL: 0x5c,
  VIRTUAL_INTERRUPT: 0x60,
  INTERRUPT_SHADOW: 0x68,
  EXITCODE: 0x70,
  EXITINFO1: 0x78,
  EXITINFO2: 0x80,
  EXITINTINFO: 0x88,
  NP_ENABLE: 0x90,
  EVENTINJ: 0xa8,
  N_CR3: 0xb0,
  VIRTUAL_EXTENSIONS: 0xb8,
  CLEAN: 0xc0,
  NEXT_RIP: 0xc8,
} as const;

export const VmcbSave = {
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
} as const;

/**
 * VMCB clean bits, with the bytes that each stands for: first offset, one past the last. Source: AMD64 APM Vol. 2, VMCB Clean Bits.
 */
export const VMCB_CLEAN_BITS: readonly (readonly [number, number, number])[] = [
  [0, 0x00, 0x18],
  [0, 0x3c, 0x40],
  [0, 0x50, 0x58],
  [1, 0x40, 0x50],
  [2, 0x58, 0x5c],
  [3, 0x60, 0x68],
  [4, 0xb0, 0xb8],
  [4, VmcbSave.G_PAT, VmcbSave.G_PAT + 8],
  [5, VmcbSave.EFER, VmcbSave.EFER + 8],
  [5, VmcbSave.CR4, VmcbSave.CR0 + 8],
  [6, VmcbSave.DR7, VmcbSave.DR6 + 8],
  [7, VmcbSave.GDTR, VmcbSave.GDTR + 16],
  [7, VmcbSave.IDTR, VmcbSave.IDTR + 16],
  [8, VmcbSave.ES, VmcbSave.DS + 16],
  [8, VmcbSave.CPL & ~3, (VmcbSave.CPL & ~3) + 4],
  [9, VmcbSave.CR2, VmcbSave.CR2 + 8],
  [10, VmcbSave.DBGCTL, VmcbSave.DBGCTL + 40],
  [11, 0x98, 0xa0],
  [11, 0xe0, 0xe8],
  [11, 0xf0, 0x100],
];
/** All that have a meaning. */
export const VMCB_ALL_CLEAN = 0xfff;

/** Bits of the intercept words. */
export const CrIntercept = { readCr8: 1 << 8, writeCr4: 1 << 20, writeCr8: 1 << 24 } as const;
export const Intercept1 = {
  INTR: 1 << 0,
  NMI: 1 << 1,
  SMI: 1 << 2,
  INIT: 1 << 3,
  VINTR: 1 << 4,
  RDPMC: 1 << 15,
  CPUID: 1 << 18,
  IRET: 1 << 20,
  INVD: 1 << 22,
  PAUSE: 1 << 23,
  HLT: 1 << 24,
  INVLPGA: 1 << 26,
  IOIO_PROT: 1 << 27,
  MSR_PROT: 1 << 28,
  TASK_SWITCH: 1 << 29,
  SHUTDOWN: 1 << 31,
} as const;
export const Intercept2 = {
  VMRUN: 1 << 0,
  VMMCALL: 1 << 1,
  VMLOAD: 1 << 2,
  VMSAVE: 1 << 3,
  STGI: 1 << 4,
  CLGI: 1 << 5,
  SKINIT: 1 << 6,
  RDTSCP: 1 << 7,
  WBINVD: 1 << 9,
  MONITOR: 1 << 10,
  MWAIT: 1 << 11,
  XSETBV: 1 << 13,
} as const;
export const Intercept3 = { INVPCID: 1 << 2 } as const;

export const TlbControl = { nothing: 0, flushAll: 1, flushGuest: 3 } as const;
/** Low word of VIRTUAL_EXTENSIONS. */
export const VIRTUAL_BRANCH_RECORDS = 1;

/** Word at VIRTUAL_INTERRUPT. */
export const VirtualInterrupt = { request: 1 << 8, priority15: 15 << 16, ignoreTpr: 1 << 20, masking: 1 << 24 } as const;
/** EVENTINJ and EXITINTINFO: low word; the high one has the error code. */
export const SvmEvent = {
  vectorMask: 0xff,
  typeShift: 8,
  typeMask: 7 << 8,
  errorCodeValid: 1 << 11,
  valid: 0x8000_0000,
  interrupt: 0,
  nmi: 2,
  exception: 3,
  softwareInterrupt: 4,
} as const;
/** EXITINFO1 of a nested page fault. */
export const NestedPageFault = { present: 1, write: 2 } as const;
