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

/** An instruction set of programs, by its bit in CPUID; subleaf 0. */
export interface CpuFeature {
  readonly name: string;
  readonly leaf: number;
  readonly register: "ecx" | "ebx";
  readonly bit: number;
}
interface LevelFeature extends CpuFeature {
  /** The first level that has it. What no level has comes with max. */
  readonly level: Level;
}

const sets = (
  level: Level,
  leaf: number,
  register: CpuFeature["register"],
  bits: Readonly<Record<string, number>>,
): LevelFeature[] => Object.entries(bits).map(([name, bit]) => ({ name, leaf, register, bit, level }));

const FEATURES: readonly LevelFeature[] = [
  ...sets(2, 1, "ecx", { SSE3: 0, SSSE3: 9, CX16: 13, "SSE4.1": 19, "SSE4.2": 20, POPCNT: 23 }),
  // In 64-bit mode
  ...sets(2, 0x8000_0001, "ecx", { LAHF: 0 }),
  ...sets(3, 1, "ecx", { FMA: 12, MOVBE: 22, XSAVE: 26, AVX: 28, F16C: 29 }),
  ...sets(3, 7, "ebx", { BMI1: 3, AVX2: 5, BMI2: 8 }),
  // Its register is a component of XSAVE
  ...sets(3, 7, "ecx", { PKU: 3 }),
  ...sets(3, 0x8000_0001, "ecx", { LZCNT: 5 }),
  ...sets(4, 1, "ecx", { PCLMULQDQ: 1, AES: 25, RDRAND: 30 }),
  ...sets(4, 7, "ebx", { RDSEED: 18, ADX: 19, SHA: 29 }),
  ...sets(4, 7, "ecx", { RDPID: 22 }),
];
/** What machines of a model lack that others have. */
export function featuresBeyond(name: CpuModelName): readonly CpuFeature[] {
  const level = levelOf(name);
  return FEATURES.filter((feature) => feature.level > level);
}
const LEAF_XSAVE = 0xd;
const LEVEL_WITH_XSAVE = 3;

/** `whole` with the instruction sets of a level, and those below. */
export function limitedToLevel(whole: CpuModel, name: CpuModelName): CpuModel {
  const level = levelOf(name);
  if (level === 4) return whole;
  const absent = featuresBeyond(name);
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
      for (const feature of absent) {
        if (feature.leaf === index) answer[feature.register] = (answer[feature.register] & ~(1 << feature.bit)) >>> 0;
      }
      return answer;
    },
    xcr0Allowed: hasXsave ? whole.xcr0Allowed : 0n,
    cr4Allowed: hasXsave ? whole.cr4Allowed : whole.cr4Allowed & ~BigInt(Cr4.OSXSAVE | Cr4.PKE),
  };
}
