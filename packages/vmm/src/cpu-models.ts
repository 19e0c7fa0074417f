/**
 * CPU models that a VM can be given: the levels of the System V ABI (AMD64 Architecture Processor Supplement, Micro-Architecture Levels),
 * and all that KVM supports. A level decides what programs may use; what is the kernel's (paging, the APIC, FSGSBASE, ...) is left as
 * KVM offers it.
 */
import type { CpuidEntry } from "./cpuid.ts";
import { VmmError } from "./vmm-error.ts";

export const CPU_MODELS = ["x86-64-v1", "x86-64-v2", "x86-64-v3", "max"] as const;
export type CpuModelName = (typeof CPU_MODELS)[number];

type Register = "eax" | "ebx" | "ecx" | "edx";
interface Feature {
  readonly name: string;
  readonly leaf: number;
  readonly register: Register;
  readonly bit: number;
  /** The first level that has it; 4: none has. */
  readonly level: 2 | 3 | 4;
}

const features = (leaf: number, register: Register, level: 2 | 3 | 4, bits: Readonly<Record<string, number>>): Feature[] =>
  Object.entries(bits).map(([name, bit]) => ({ name, leaf, register, bit, level }));

/** Instruction sets of programs beyond the 64-bit baseline. */
const FEATURES: readonly Feature[] = [
  ...features(1, "ecx", 2, { SSE3: 0, SSSE3: 9, CX16: 13, "SSE4.1": 19, "SSE4.2": 20, POPCNT: 23 }),
  ...features(0x8000_0001, "ecx", 2, { LAHF: 0 }),
  ...features(1, "ecx", 3, { FMA: 12, MOVBE: 22, XSAVE: 26, AVX: 28, F16C: 29 }),
  ...features(7, "ebx", 3, { BMI1: 3, AVX2: 5, BMI2: 8 }),
  ...features(0x8000_0001, "ecx", 3, { LZCNT: 5 }),
  ...features(1, "ecx", 4, { PCLMULQDQ: 1, AES: 25, RDRAND: 30 }),
  ...features(7, "ebx", 4, { RDSEED: 18, ADX: 19, SHA: 29 }),
  ...features(7, "ecx", 4, { GFNI: 8, VAES: 9, VPCLMULQDQ: 10, RDPID: 22 }),
];
/** AVX-512 and later sets, of which this table knows no more: by leaf and register. */
const LATER_SETS: readonly (readonly [number, Register, number])[] = [
  [7, "ebx", bits(16, 17, 21, 26, 27, 28, 30, 31)],
  [7, "ecx", bits(1, 6, 11, 12, 14)],
  [7, "edx", bits(2, 3, 8, 22, 23, 24, 25)],
];
/** Protection keys come with XSAVE. */
const PKU = { leaf: 7, register: "ecx", bit: 3 } as const;
const LEAF_XSAVE = 0xd;
/** Of XCR0: x87, SSE, AVX, PKRU. */
const V3_COMPONENTS = bits(0, 1, 2, 9);

function bits(...numbers: number[]): number {
  return numbers.reduce((all, bit) => all | (1 << bit), 0) >>> 0;
}
const levelOf = (model: Exclude<CpuModelName, "max">): number => Number(model.slice(-1));

/** The name, or a VmmError that lists those there are. */
export function cpuModelNamed(name: string): CpuModelName {
  const model = CPU_MODELS.find((known) => known === name);
  if (model === undefined) throw new VmmError(`--cpu ${name}: there is no such CPU model; one of ${CPU_MODELS.join(", ")}`);
  return model;
}

/** Of what KVM supports, what the model has. Throws VmmError where KVM lacks something that the model promises. */
export function limitedTo(model: CpuModelName, supported: readonly CpuidEntry[]): CpuidEntry[] {
  if (model === "max") return [...supported];
  const level = levelOf(model);
  const isSet = ({ leaf, register, bit }: Pick<Feature, "leaf" | "register" | "bit">): boolean =>
    supported.some((entry) => entry.function === leaf && entry.index === 0 && ((entry[register] >>> bit) & 1) !== 0);
  const lacking = FEATURES.filter((feature) => feature.level <= level && !isSet(feature));
  if (lacking.length > 0) {
    const names = lacking.map(({ name }) => name).join(", ");
    throw new VmmError(`--cpu ${model}: this KVM does not offer ${names}; choose a lower level, or max for all that it has`);
  }
  const hidden: (readonly [number, Register, number])[] = [
    ...FEATURES.filter((feature) => feature.level > level).map(
      ({ leaf, register, bit }) => [leaf, register, bits(bit)] as const,
    ),
    ...LATER_SETS,
  ];
  if (level < 3) hidden.push([PKU.leaf, PKU.register, bits(PKU.bit)]);
  return supported
    .filter((entry) => entry.function !== LEAF_XSAVE || level >= 3)
    .filter((entry) => entry.function !== LEAF_XSAVE || entry.index < 2 || ((V3_COMPONENTS >>> entry.index) & 1) !== 0)
    .map((entry) => {
      const limited = { ...entry };
      for (const [leaf, register, mask] of hidden) {
        if (entry.function === leaf && entry.index === 0) limited[register] = (limited[register] & ~mask) >>> 0;
      }
      if (entry.function === LEAF_XSAVE && entry.index === 0) limited.eax = (limited.eax & V3_COMPONENTS) >>> 0;
      return limited;
    });
}
