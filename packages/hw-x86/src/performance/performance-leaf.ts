/** What CPUID tells of performance monitoring on the Intel-type machine. Source: Intel SDM Vol. 2A, CPUID - CPU Identification. */
import { COUNTER_BITS } from "./counter.ts";

/** Architectural performance monitoring, version 2. */
const VERSION = 2;
export const GENERAL_COUNTERS = 4;
export const FIXED_COUNTERS = 3;

/** Architectural events by their bits in EBX, where 1 says that the machine has not the event. */
const Architectural = { coreCycles: 1 << 0, instructions: 1 << 1, referenceCycles: 1 << 2 } as const;
const EVENTS = 7;
const COUNTED = Architectural.coreCycles | Architectural.instructions | Architectural.referenceCycles;

/** Leaf 0AH. */
export const PERFORMANCE_LEAF = {
  eax: VERSION | (GENERAL_COUNTERS << 8) | (COUNTER_BITS << 16) | (EVENTS << 24),
  ebx: ((1 << EVENTS) - 1) & ~COUNTED,
  ecx: 0,
  edx: FIXED_COUNTERS | (COUNTER_BITS << 5),
} as const;
