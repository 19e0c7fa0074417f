/** Bits of the system registers, as masks of their low 32 bits (Intel SDM Vol. 3A, Control Registers; EFLAGS Register). */
export const Cr0 = {
  PE: 0x1,
  MP: 0x2,
  EM: 0x4,
  TS: 0x8,
  ET: 0x10,
  NE: 0x20,
  WP: 0x1_0000,
  AM: 0x4_0000,
  NW: 0x2000_0000,
  CD: 0x4000_0000,
  PG: 0x8000_0000,
} as const;
export const Cr4 = {
  VME: 0x1,
  PVI: 0x2,
  TSD: 0x4,
  DE: 0x8,
  PSE: 0x10,
  PAE: 0x20,
  MCE: 0x40,
  PGE: 0x80,
  PCE: 0x100,
  OSFXSR: 0x200,
  OSXMMEXCPT: 0x400,
  UMIP: 0x800,
  LA57: 0x1000,
  VMXE: 0x2000,
  FSGSBASE: 0x1_0000,
  PCIDE: 0x2_0000,
  OSXSAVE: 0x4_0000,
  SMEP: 0x10_0000,
  SMAP: 0x20_0000,
  PKE: 0x40_0000,
} as const;
export const Efer = { SCE: 0x1, LME: 0x100, LMA: 0x400, NXE: 0x800, SVME: 0x1000 } as const;
export const Flag = {
  CF: 0x1,
  PF: 0x4,
  AF: 0x10,
  ZF: 0x40,
  SF: 0x80,
  TF: 0x100,
  IF: 0x200,
  DF: 0x400,
  OF: 0x800,
  IOPL: 0x3000,
  NT: 0x4000,
  RF: 0x1_0000,
  VM: 0x2_0000,
  AC: 0x4_0000,
  VIF: 0x8_0000,
  VIP: 0x10_0000,
  ID: 0x20_0000,
} as const;
/** Every flag that POPF and IRET can name, and the bit that is always set. */
export const FLAGS_DEFINED = 0x3f_7fd7;
export const FLAGS_FIXED = 0x2;
export const FLAGS_ARITHMETIC = 0x8d5;

export const Vector = {
  DE: 0,
  DB: 1,
  NMI: 2,
  BP: 3,
  OF: 4,
  BR: 5,
  UD: 6,
  NM: 7,
  DF: 8,
  TS: 10,
  NP: 11,
  SS: 12,
  GP: 13,
  PF: 14,
  MF: 16,
  AC: 17,
} as const;

/** Access-rights bits of a segment slot (SEG_ACCESS), in the VMX format. */
export const Access = {
  typeMask: 0xf,
  accessed: 0x1,
  /** Data: writable. Code: readable. */
  writable: 0x2,
  readable: 0x2,
  /** Data: expand-down. Code: conforming. */
  expandDown: 0x4,
  conforming: 0x4,
  code: 0x8,
  /** S: a code or data segment. */
  application: 0x10,
  dplShift: 5,
  present: 0x80,
  long: 0x2000,
  big: 0x4000,
  granular: 0x8000,
  unusable: 0x1_0000,
} as const;
