import { CpuidFlag } from "@mkvm/kvm-abi";
import type { CpuidEntry } from "./cpuid.ts";

/**
 * Where a vCPU is among the others: one package, a core for each vCPU, one thread in a core; the APIC id is the core's number.
 * Source: Intel SDM Vol. 2A, CPUID; AMD64 APM Vol. 3, Obtaining Processor Information Via the CPUID Instruction.
 */
const LEAF_FEATURES = 1,
  LEAF_CACHES = 4,
  LEAF_TOPOLOGY = 0xb,
  LEAF_TOPOLOGY_V2 = 0x1f,
  LEAF_EXTENDED_FEATURES = 0x8000_0001,
  LEAF_SIZES = 0x8000_0008;
/** More than one logical processor in the package. */
const HTT = 1 << 28;
/** AMD: they are cores, not threads of one core. */
const CMP_LEGACY = 1 << 1;
const AUTHENTIC_AMD_EBX = 0x6874_7541;
/** Level types of the topology leaves, in ECX 15:8. */
const SMT = 1 << 8,
  CORE = 2 << 8;
const LAST_LEVEL_CACHE = 3;

/** The table with what only the VMM knows: APIC id, and the number of vCPUs. */
export function withTopology(table: readonly CpuidEntry[], apicId: number, cpus: number): CpuidEntry[] {
  const isAmd = table.some((entry) => entry.function === 0 && entry.ebx === AUTHENTIC_AMD_EBX);
  const coreBits = Math.ceil(Math.log2(cpus));
  return table.flatMap((entry): CpuidEntry[] => {
    switch (entry.function) {
      case LEAF_FEATURES: {
        const ebx = ((entry.ebx & 0xff00) | (cpus << 16) | (apicId << 24)) >>> 0;
        return [{ ...entry, ebx, edx: cpus > 1 ? (entry.edx | HTT) >>> 0 : entry.edx }];
      }
      case LEAF_CACHES:
        return [cpus > 1 ? sharedCache(entry, cpus, coreBits) : entry];
      case LEAF_TOPOLOGY:
      case LEAF_TOPOLOGY_V2:
        return cpus > 1 ? topologyLevels(entry, apicId, cpus, coreBits) : [{ ...entry, edx: apicId }];
      case LEAF_EXTENDED_FEATURES:
        return [isAmd && cpus > 1 ? { ...entry, ecx: entry.ecx | CMP_LEGACY } : entry];
      case LEAF_SIZES:
        return [isAmd && cpus > 1 ? { ...entry, ecx: (cpus - 1) | (coreBits << 12) } : entry];
      default:
        return [entry];
    }
  });
}

/** EAX 31:26 cores of the package, 25:14 threads that share the cache, each less one: the last level is everybody's. */
function sharedCache(entry: CpuidEntry, cpus: number, coreBits: number): CpuidEntry {
  if ((entry.eax & 0x1f) === 0) return entry;
  const level = (entry.eax >>> 5) & 7;
  const sharing = level >= LAST_LEVEL_CACHE ? cpus - 1 : 0;
  return { ...entry, eax: ((entry.eax & 0x3fff) | (sharing << 14) | (((1 << coreBits) - 1) << 26)) >>> 0 };
}

/** EAX: bits of the APIC id below the next level; EBX: logical processors of the level; EDX: APIC id. */
function topologyLevels(entry: CpuidEntry, apicId: number, cpus: number, coreBits: number): CpuidEntry[] {
  const level = { ...entry, flags: CpuidFlag.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, edx: apicId };
  return [
    { ...level, index: 0, eax: 0, ebx: 1, ecx: SMT },
    { ...level, index: 1, eax: coreBits, ebx: cpus, ecx: CORE | 1 },
    { ...level, index: 2, eax: 0, ebx: 0, ecx: 2 },
  ];
}
