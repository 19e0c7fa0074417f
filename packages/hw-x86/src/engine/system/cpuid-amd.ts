/** CPUID of the AMD-type machine: what works, and only that. Source: AMD64 APM Vol. 3, Obtaining Processor Information Via the CPUID Instruction. */
import type { CpuModel } from "../cpu.ts";
import { Cr4, Efer } from "./bits.ts";
import {
  ARAT,
  BRAND,
  bits,
  CLFLUSH_8_QUADWORDS,
  type CpuidResult,
  CR0_ALLOWED,
  CR4_ALLOWED,
  EXTENDED_1_EDX,
  INVARIANT_TSC,
  INVPCID,
  LA57,
  LEAF_1_EDX,
  LINEAR_ADDRESS_BITS,
  ONE_LOGICAL_PROCESSOR,
  PCID,
  PHYSICAL_ADDRESS_BITS,
  PKU,
  result,
  text,
  XCR0_ALLOWED,
  xsaveLeaf,
} from "./cpuid.ts";
import { InstructionSets, withInstructionSets } from "./instruction-sets.ts";

/**
 * Family 20 (14h), model 2, stepping 0: a 64-bit core with nested paging, and one of the few families for which kernels
 * know of no erratum to work around with registers that this machine has not. What it can do is told by the feature bits, which are
 * those of much later families: protection keys and PCID came with family 25 (19h), virtual NMIs and five levels of tables with its
 * second generation.
 */
const SIGNATURE = 0x0050_0f20;
/** MONITOR CX16 PCID POPCNT XSAVE. */
const LEAF_1_ECX = bits(3, 13, PCID, 23, 26);
/** LAHF in 64-bit mode, SVM, PerfCtrExtCore. */
const EXTENDED_1_ECX = bits(0, 2, 23);
/** What leaf 1 tells, where AMD's processors tell it again: FPU to MTRR without SEP, PGE to PSE36, MMX, FXSR. */
const REPEATED_EDX = LEAF_1_EDX & bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24);
const SVM_REVISION = 1;
/**
 * NP, LbrVirt, NRIPS, TscRateMsr, VmcbClean, FlushByAsid, DecodeAssists, PauseFilter, PauseFilterThreshold, AVIC, virtual VMLOAD and VMSAVE,
 * vGIF, vNMI.
 */
const SVM_FEATURES = bits(0, 1, 3, 4, 5, 6, 7, 10, 12, 13, 15, 16, 25);
/** ASIDs, that of the host included. */
export const ASIDS = 0x8000;
const LAST_BASIC = 0xd;
const LAST_EXTENDED = 0x8000_000a;

function amdCpuid(leaf: number, subleaf: number): CpuidResult {
  switch (leaf) {
    case 0:
    case 0x8000_0000:
      return result(leaf === 0 ? LAST_BASIC : LAST_EXTENDED, 0x6874_7541, 0x444d_4163, 0x6974_6e65);
    case 1:
      return result(SIGNATURE, CLFLUSH_8_QUADWORDS | ONE_LOGICAL_PROCESSOR, LEAF_1_ECX | InstructionSets.leaf1Ecx, LEAF_1_EDX);
    case 5:
      return result(64, 64, 3);
    case 6:
      return result(ARAT);
    case 7:
      if (subleaf !== 0) return result();
      return result(0, InstructionSets.leaf7Ebx | bits(INVPCID), InstructionSets.leaf7Ecx | bits(PKU, LA57));
    case 0xd:
      return xsaveLeaf(subleaf);
    case 0x8000_0001:
      return result(SIGNATURE, 0, EXTENDED_1_ECX | InstructionSets.extended1Ecx, EXTENDED_1_EDX | REPEATED_EDX);
    case 0x8000_0002:
    case 0x8000_0003:
    case 0x8000_0004:
      return text(BRAND, (leaf - 0x8000_0002) * 16);
    case 0x8000_0005:
      // 64 KiB each for data and code, 2 ways, lines of 64 bytes
      return result(0, 0, 0x4002_0140, 0x4002_0140);
    case 0x8000_0006:
      // 512 KiB, 16 ways, lines of 64 bytes
      return result(0, 0, 0x0200_8140);
    case 0x8000_0007:
      return result(0, 0, 0, INVARIANT_TSC);
    case 0x8000_0008:
      return result(PHYSICAL_ADDRESS_BITS | (LINEAR_ADDRESS_BITS << 8));
    case 0x8000_000a:
      return result(SVM_REVISION, ASIDS, 0, SVM_FEATURES);
    default:
      return result();
  }
}

/** The AMD-type machine: x86-64-v3, SVM. */
export function createAmdModel(): CpuModel {
  return withInstructionSets({
    vendor: "amd",
    level: 4,
    // Leaves that do not exist read as zero
    cpuid: (leaf, subleaf) => amdCpuid(leaf >>> 0, subleaf >>> 0),
    cr0Allowed: CR0_ALLOWED,
    cr4Allowed: CR4_ALLOWED | BigInt(Cr4.PCIDE),
    xcr0Allowed: BigInt(XCR0_ALLOWED),
    eferAllowed: BigInt(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE | Efer.SVME),
    physicalAddressBits: PHYSICAL_ADDRESS_BITS,
    linearAddressBits: LINEAR_ADDRESS_BITS,
  });
}
