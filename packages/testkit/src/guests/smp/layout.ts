/** Where things lie in the memory of the SMP guest. Everything is below 4 GiB and mapped one to one by whoever loads it. */
export const ORIGIN = 0x10_0000;
/** Pages at which start-up IPIs begin, and what the code there reads. */
export const TRAMPOLINES = [0x3000, 0x4000] as const;
export const TRAMPOLINE_GDTR = 0x2f00;
export const TRAMPOLINE_CR3 = 0x2f10;
/** The second trampoline leaves a mark. */
export const SECOND_MARK = 0x2f20;
export const IDT = 0x1f_1000;

const SHARED = 0x1f_0000;
/** Words that all CPUs use. */
export const Shared = {
  /** CPUs that have come up, as often as they did. */
  alive: SHARED,
  /** Address of what a CPU is to call when CALL_VECTOR arrives. */
  routine: SHARED + 8,
  /** CPUs that have called it. */
  done: SHARED + 16,
  /** 1: local APICs are in x2APIC mode. */
  x2apic: SHARED + 24,
  /** 1: lets CPUs go that hold interrupts off. */
  release: SHARED + 32,
  held: SHARED + 40,
  lock: SHARED + 0x80,
  incremented: SHARED + 0xc0,
  added: SHARED + 0x100,
  exchanged: SHARED + 0x140,
  locked: SHARED + 0x180,
} as const;

/** One block for each CPU, by APIC id: counters by vector, results, and the stack at its end. */
export const PER_CPU = 0x20_0000;
export const PER_CPU_BYTES = 0x2000;
export const NMI_COUNT = 0x400;
export const RESULT = 0x408;

/** A page that is mapped to one of two frames. */
export const ALIAS = 0x40_0000_0000n;
export const ALIAS_TABLES = 0x24_0000;
export const FRAMES = [0x23_0000, 0x23_1000] as const;
/** A routine that is written while others call it. */
export const PATCHED = 0x25_0000;

export const APIC = 0xfee0_0000;
export const ApicRegister = {
  id: 0x20,
  tpr: 0x80,
  eoi: 0xb0,
  ldr: 0xd0,
  dfr: 0xe0,
  spurious: 0xf0,
  icrLow: 0x300,
  icrHigh: 0x310,
} as const;
export const X2apicMsr = { eoi: 0x80b, icr: 0x830, selfIpi: 0x83f } as const;
export const IO_APIC = 0xfec0_0000;
export const CALL_VECTOR = 0x60;
/** Vectors whose handler counts. */
export const FIRST_VECTOR = 0x40,
  LAST_VECTOR = 0x5f;
/** Written to it, a number ends the guest. */
export const EXIT_PORT = 0xf4;
export const PASSED = 1;
