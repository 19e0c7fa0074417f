/** Features of a guest by its CPUID table. Source: Intel SDM Vol. 2A, CPUID. */
import { type CpuidEntry, findCpuid } from "../cpuid-table.ts";

/** Leaf, subleaf, register and bit. */
type FeatureBit = readonly [leaf: number, subleaf: number, register: "eax" | "ebx" | "ecx" | "edx", bit: number];

export const GuestFeature = {
  XSAVE: [1, 0, "ecx", 26],
  RDRAND: [1, 0, "ecx", 30],
  INVPCID: [7, 0, "ebx", 10],
  RDSEED: [7, 0, "ebx", 18],
  RDPID: [7, 0, "ecx", 22],
  ARCH_CAPABILITIES: [7, 0, "edx", 29],
  XSAVES: [0xd, 1, "eax", 3],
  RDTSCP: [0x8000_0001, 0, "edx", 27],
} as const satisfies Record<string, FeatureBit>;

export function hasFeature(table: readonly CpuidEntry[], feature: keyof typeof GuestFeature): boolean {
  const [leaf, subleaf, register, bit]: FeatureBit = GuestFeature[feature];
  return (((findCpuid(table, leaf, subleaf)?.[register] ?? 0) >>> bit) & 1) !== 0;
}
