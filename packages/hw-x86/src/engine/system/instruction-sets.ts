/** CPUID's words for instruction sets of user mode beyond the 64-bit baseline, and what control registers must allow for them. */
import type { CpuModel } from "../cpu.ts";
import { Cr4 } from "./bits.ts";

const bits = (...numbers: number[]): number => numbers.reduce((all, bit) => all | (1 << bit), 0) >>> 0;

export const InstructionSets = {
  /** SSE3 PCLMULQDQ SSSE3 FMA SSE4.1 SSE4.2 MOVBE POPCNT AES AVX F16C RDRAND. */
  leaf1Ecx: bits(0, 1, 9, 12, 19, 20, 22, 23, 25, 28, 29, 30),
  /** FSGSBASE BMI1 AVX2 BMI2 RDSEED ADX SHA. */
  leaf7Ebx: bits(0, 3, 5, 8, 18, 19, 29),
  /** RDPID. */
  leaf7Ecx: bits(22),
  /** LZCNT. */
  extended1Ecx: bits(5),
} as const;

/** The model with the bits of CR4 that these sets bring. */
export function withInstructionSets(model: CpuModel): CpuModel {
  return { ...model, cr4Allowed: model.cr4Allowed | BigInt(Cr4.FSGSBASE) };
}
