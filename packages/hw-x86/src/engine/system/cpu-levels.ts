/**
 * CPU models of machines: the levels of the System V ABI (AMD64 Architecture Processor Supplement, Micro-Architecture Levels), and all
 * that the engine knows. A level decides which instructions of programs there are; what is the kernel's (paging, the APIC, VMX and SVM,
 * FSGSBASE, ...) is the same in all.
 */
import type { CpuModel } from "../cpu.ts";
import { Cr4 } from "./bits.ts";

export const CPU_MODELS = ["x86-64-v1", "x86-64-v2", "x86-64-v3", "max"] as const;
export type CpuModelName = (typeof CPU_MODELS)[number];

/** Instruction sets that come with a level; 4: with max only. */
export type Level = 1 | 2 | 3 | 4;
export const levelOf = (name: CpuModelName): Level => (CPU_MODELS.indexOf(name) + 1) as Level;

type Register = "ecx" | "ebx";
const bits = (...numbers: number[]): number => numbers.reduce((all, bit) => all | (1 << bit), 0) >>> 0;

/** First level that has them, leaf, register, bits. Those that no level has are listed with max. */
const SETS: readonly (readonly [Level, number, Register, number])[] = [
  [2, 1, "ecx", bits(0, 9, 13, 19, 20, 23)], // SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT
  [2, 0x8000_0001, "ecx", bits(0)], // LAHF in 64-bit mode
  [3, 1, "ecx", bits(12, 22, 26, 28, 29)], // FMA MOVBE XSAVE AVX F16C
  [3, 7, "ebx", bits(3, 5, 8)], // BMI1 AVX2 BMI2
  [3, 7, "ecx", bits(3)], // PKU, whose register is a component of XSAVE
  [3, 0x8000_0001, "ecx", bits(5)], // LZCNT
  [4, 1, "ecx", bits(1, 25, 30)], // PCLMULQDQ AES RDRAND
  [4, 7, "ebx", bits(18, 19, 29)], // RDSEED ADX SHA
  [4, 7, "ecx", bits(22)], // RDPID
];
const LEAF_XSAVE = 0xd;
const LEVEL_WITH_XSAVE = 3;

/** `whole` with the instruction sets of a level, and those below. */
export function limitedToLevel(whole: CpuModel, name: CpuModelName): CpuModel {
  const level = levelOf(name);
  if (level === 4) return whole;
  const absent = SETS.filter(([from]) => from > level);
  const hasXsave = level >= LEVEL_WITH_XSAVE;
  const nothing = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  return {
    ...whole,
    level,
    cpuid(leaf, subleaf) {
      const index = leaf >>> 0;
      if (index === LEAF_XSAVE && !hasXsave) return nothing;
      const answer = { ...whole.cpuid(index, subleaf) };
      if (index === 7 && subleaf !== 0) return answer;
      for (const [, of, register, mask] of absent) if (of === index) answer[register] = (answer[register] & ~mask) >>> 0;
      return answer;
    },
    xcr0Allowed: hasXsave ? whole.xcr0Allowed : 0n,
    cr4Allowed: hasXsave ? whole.cr4Allowed : whole.cr4Allowed & ~BigInt(Cr4.OSXSAVE | Cr4.PKE),
  };
}
