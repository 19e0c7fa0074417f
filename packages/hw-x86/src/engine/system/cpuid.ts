/** CPUID of the machine itself: what works, and only that (Intel SDM Vol. 2A, CPUID - CPU Identification). */
import { PERFORMANCE_LEAF } from "../../performance/performance-leaf.ts";
import type { Cpu, CpuModel } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { areaBytes, COMPONENTS, Xstate } from "../fpu/xsave-layout.ts";
import { Cr0, Cr4, Efer } from "./bits.ts";
import { InstructionSets, withInstructionSets } from "./instruction-sets.ts";

export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** A word with these bits set. */
export const bits = (...numbers: number[]): number => numbers.reduce((all, bit) => all | (1 << bit), 0) >>> 0;

/** Family 6, model 44, stepping 2: a 64-bit Intel core; what it can do is told by the feature bits. */
const SIGNATURE = 0x0002_06c2;
export const CLFLUSH_8_QUADWORDS = 0x800;
export const ONE_LOGICAL_PROCESSOR = 1 << 16;
/** Process-context identifiers, and the instruction that invalidates by them. */
export const PCID = 17;
export const INVPCID = 10;
/** DTES64 MONITOR VMX CX16 PDCM PCID POPCNT XSAVE. */
const LEAF_1_ECX = bits(2, 3, 5, 13, 15, PCID, 23, 26);
/** DS. */
const DEBUG_STORE = bits(21);
/** FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2. */
export const LEAF_1_EDX = bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26);
/** Protection keys, and that CR4 has them on. */
export const PKU = 3;
const OSPKE = bits(4);
/** SMEP INVPCID SMAP. */
const LEAF_7_EBX = bits(7, INVPCID, 20);
/** Five levels of paging tables. */
export const LA57 = 16;
/** UMIP PKU LA57. */
const LEAF_7_ECX = bits(2, PKU, LA57);
/** SERIALIZE ARCH_CAPABILITIES. */
const LEAF_7_EDX = bits(14, 29);
/** LAHF in 64-bit mode. */
const EXTENDED_1_ECX = bits(0);
/** SYSCALL NX 1-GiB pages RDTSCP LM. */
export const EXTENDED_1_EDX = bits(11, 20, 26, 27, 29);
export const INVARIANT_TSC = bits(8);
export const ARAT = bits(2);
export const PHYSICAL_ADDRESS_BITS = 52;
export const LINEAR_ADDRESS_BITS = 57;
export const BRAND = "mkvm software processor";
const LAST_BASIC = 0xd;
/** XSAVEOPT XSAVEC, XGETBV of what is in use, XSAVES. */
const XSAVE_FEATURES = bits(0, 1, 2, 3);
export const XCR0_ALLOWED = Xstate.x87 | Xstate.sse | Xstate.avx | Xstate.pkru;
const LAST_EXTENDED = 0x8000_0008;

export function result(eax = 0, ebx = 0, ecx = 0, edx = 0): CpuidResult {
  return { eax: eax >>> 0, ebx: ebx >>> 0, ecx: ecx >>> 0, edx: edx >>> 0 };
}

export function text(source: string, start: number): CpuidResult {
  const word = (at: number): number =>
    [0, 1, 2, 3].reduce((all, byte) => all | ((source.charCodeAt(at + byte) || 0) << (byte * 8)), 0);
  return result(word(start), word(start + 4), word(start + 8), word(start + 12));
}

/** Deterministic cache parameters: L1 data, L1 code, L2. Ways, sets, with lines of 64 bytes. */
function cacheLeaf(subleaf: number): CpuidResult {
  const caches = [
    { type: 1, level: 1, ways: 8, sets: 64 },
    { type: 2, level: 1, ways: 4, sets: 128 },
    { type: 3, level: 2, ways: 8, sets: 512 },
  ];
  const cache = caches[subleaf];
  if (cache === undefined) return result();
  return result(cache.type | (cache.level << 5) | 0x100, ((cache.ways - 1) << 22) | 63, cache.sets - 1);
}

/** Sizes with all components enabled: `currentCpuid` has those of XCR0. */
export function xsaveLeaf(subleaf: number): CpuidResult {
  const size = areaBytes(XCR0_ALLOWED, false);
  if (subleaf === 0) return result(XCR0_ALLOWED, size, size);
  if (subleaf === 1) return result(XSAVE_FEATURES, areaBytes(XCR0_ALLOWED, true));
  const component = COMPONENTS.find(({ index, bit }) => index === subleaf && (XCR0_ALLOWED & bit) !== 0);
  return component === undefined ? result() : result(component.bytes, component.offset);
}

const OSXSAVE = bits(27);

/** CPUID as code on this CPU executes it: some of it follows CR4 and XCR0. */
export function currentCpuid(cpu: Cpu, leaf: number, subleaf: number): CpuidResult {
  const answer = cpu.model.cpuid(leaf, subleaf);
  if (leaf === 1 && (cpu.u32[state.cr4 >>> 2] & Cr4.OSXSAVE) !== 0) return { ...answer, ecx: (answer.ecx | OSXSAVE) >>> 0 };
  if (leaf === 7 && subleaf === 0 && (cpu.u32[state.cr4 >>> 2] & Cr4.PKE) !== 0)
    return { ...answer, ecx: (answer.ecx | OSPKE) >>> 0 };
  if (leaf !== 0xd || subleaf > 1 || answer.eax === 0) return answer;
  const enabled = cpu.u32[state.xcr0 >>> 2] | (subleaf === 1 ? cpu.u32[state.xss >>> 2] : 0);
  return { ...answer, ebx: areaBytes(enabled, subleaf === 1) };
}

function intelCpuid(leaf: number, subleaf: number): CpuidResult {
  switch (leaf) {
    case 0:
      return result(LAST_BASIC, 0x756e_6547, 0x6c65_746e, 0x4965_6e69);
    case 1:
      return result(
        SIGNATURE,
        CLFLUSH_8_QUADWORDS | ONE_LOGICAL_PROCESSOR,
        LEAF_1_ECX | InstructionSets.leaf1Ecx,
        LEAF_1_EDX | DEBUG_STORE,
      );
    case 2:
      // 0xff: see leaf 4.
      return result(0x0000_ff01);
    case 4:
      return cacheLeaf(subleaf);
    case 5:
      return result(64, 64, 3);
    case 6:
      return result(ARAT);
    case 7:
      if (subleaf !== 0) return result();
      return result(0, InstructionSets.leaf7Ebx | LEAF_7_EBX, InstructionSets.leaf7Ecx | LEAF_7_ECX, LEAF_7_EDX);
    case 0xa:
      return { ...PERFORMANCE_LEAF };
    case 0xd:
      return xsaveLeaf(subleaf);
    case 0x8000_0000:
      return result(LAST_EXTENDED);
    case 0x8000_0001:
      return result(0, 0, EXTENDED_1_ECX | InstructionSets.extended1Ecx, EXTENDED_1_EDX);
    case 0x8000_0002:
    case 0x8000_0003:
    case 0x8000_0004:
      return text(BRAND, (leaf - 0x8000_0002) * 16);
    case 0x8000_0006:
      // 256 KiB, 8 ways, lines of 64 bytes.
      return result(0, 0, 0x0100_6040);
    case 0x8000_0007:
      return result(0, 0, 0, INVARIANT_TSC);
    case 0x8000_0008:
      return result(PHYSICAL_ADDRESS_BITS | (LINEAR_ADDRESS_BITS << 8));
    default:
      return result();
  }
}

/** Bits of control registers that both vendors' machines have. */
export const CR0_ALLOWED = BigInt(
  (Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.NW | Cr0.CD | Cr0.PG) >>> 0,
);
export const CR4_ALLOWED = BigInt(
  Cr4.VME |
    Cr4.PVI |
    Cr4.TSD |
    Cr4.DE |
    Cr4.PSE |
    Cr4.PAE |
    Cr4.MCE |
    Cr4.PGE |
    Cr4.PCE |
    Cr4.OSFXSR |
    Cr4.OSXMMEXCPT |
    Cr4.OSXSAVE |
    Cr4.PKE |
    Cr4.LA57,
);

/** The Intel-type machine: x86-64-v3, VMX. */
export function createIntelModel(): CpuModel {
  return withInstructionSets({
    vendor: "intel",
    level: 4,
    cpuid(leaf, subleaf) {
      const index = leaf >>> 0;
      // Leaves past the last one read as the last basic leaf.
      const isKnown = index <= LAST_BASIC || (index >= 0x8000_0000 && index <= LAST_EXTENDED);
      return intelCpuid(isKnown ? index : LAST_BASIC, subleaf >>> 0);
    },
    cr0Allowed: CR0_ALLOWED,
    cr4Allowed: CR4_ALLOWED | BigInt(Cr4.UMIP | Cr4.PCIDE | Cr4.SMEP | Cr4.SMAP | Cr4.VMXE),
    xcr0Allowed: BigInt(XCR0_ALLOWED),
    eferAllowed: BigInt(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE),
    physicalAddressBits: PHYSICAL_ADDRESS_BITS,
    linearAddressBits: LINEAR_ADDRESS_BITS,
  });
}
