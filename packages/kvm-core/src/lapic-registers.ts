/** Offsets of local APIC registers and their bits. Source: Intel SDM Vol. 3A, Local APIC Register Address Map. */
export const ApicRegister = {
  id: 0x20,
  version: 0x30,
  tpr: 0x80,
  ppr: 0xa0,
  eoi: 0xb0,
  ldr: 0xd0,
  dfr: 0xe0,
  svr: 0xf0,
  isr: 0x100,
  tmr: 0x180,
  irr: 0x200,
  esr: 0x280,
  icrLow: 0x300,
  icrHigh: 0x310,
  lvtTimer: 0x320,
  lvtThermal: 0x330,
  lvtPerformance: 0x340,
  lvtLint0: 0x350,
  lvtLint1: 0x360,
  lvtError: 0x370,
  initialCount: 0x380,
  currentCount: 0x390,
  divide: 0x3e0,
  selfIpi: 0x3f0,
} as const;

export const SVR_SOFTWARE_ENABLE = 1 << 8;
export const LvtBit = { level: 1 << 15, masked: 1 << 16, periodic: 1 << 17, tscDeadline: 1 << 18 } as const;
export const IcrBit = { logical: 1 << 11, pending: 1 << 12, assert: 1 << 14, level: 1 << 15 } as const;

/** Writable bits of the LVT entries, in the order of their registers: timer, thermal, performance, LINT0, LINT1, error. */
export const LVT_MASKS = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff] as const;

export const ApicBase = {
  default: 0xfee0_0000n,
  bootCpu: 1n << 8n,
  x2apic: 1n << 10n,
  enable: 1n << 11n,
  modeMask: 3n << 10n,
  addressMask: 0x000f_ffff_ffff_f000n,
  /** Bits that must be zero: 0 to 7, 9, and those above 52. */
  reserved: 0xfff0_0000_0000_02ffn,
} as const;
