/** CPUID tables of a vCPU. */
import { array, struct, u32 } from "../layout.ts";

export const KvmCpuidEntry = struct("kvm_cpuid_entry", 24, {
  function: u32(0),
  eax: u32(4),
  ebx: u32(8),
  ecx: u32(12),
  edx: u32(16),
  padding: u32(20),
});
export const KvmCpuidEntry2 = struct("kvm_cpuid_entry2", 40, {
  function: u32(0),
  index: u32(4),
  flags: u32(8), // CpuidFlag
  eax: u32(12),
  ebx: u32(16),
  ecx: u32(20),
  edx: u32(24),
  padding: array(28, u32, 3),
});
export const KvmCpuid = struct("kvm_cpuid", 8, { nent: u32(0), padding: u32(4) }, { name: "entries", strideBytes: 24 });
export const KvmCpuid2 = struct("kvm_cpuid2", 8, { nent: u32(0), padding: u32(4) }, { name: "entries", strideBytes: 40 });
export const CpuidFlag = {
  KVM_CPUID_FLAG_SIGNIFCANT_INDEX: 1,
  KVM_CPUID_FLAG_STATEFUL_FUNC: 2,
  KVM_CPUID_FLAG_STATE_READ_NEXT: 4,
} as const;
