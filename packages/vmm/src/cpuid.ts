import { Ioctl, KvmCpuid2, KvmCpuidEntry2 } from "@mkvm/kvm-abi";
import type { KvmCalls } from "./kvm-calls.ts";

const MOST_ENTRIES = 256;
const LEAF_FEATURES = 1,
  LEAF_TOPOLOGY = 0xb;
const HYPERVISOR_PRESENT = 1 << 31;

/** Gives a vCPU all that KVM supports, with its own APIC id and the number of vCPUs in the topology. */
export async function setCpuid(kvm: KvmCalls, systemFd: number, vcpuFd: number, apicId: number, cpus: number): Promise<void> {
  const table = new Uint8Array(KvmCpuid2.sizeBytes + MOST_ENTRIES * KvmCpuidEntry2.sizeBytes);
  KvmCpuid2.set(table, "nent", MOST_ENTRIES);
  const supported = await kvm.exchange(systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, table);
  const count = KvmCpuid2.get(supported, "nent");
  for (let index = 0; index < count; index++) {
    const at = KvmCpuid2.tailOffset(index);
    const entry = KvmCpuidEntry2.read(supported, at);
    if (entry.function === LEAF_FEATURES) {
      const ebx = ((entry.ebx & 0xff00) | (cpus << 16) | (apicId << 24)) >>> 0;
      KvmCpuidEntry2.write(supported, { ebx, ecx: (entry.ecx | HYPERVISOR_PRESENT) >>> 0 }, at);
    }
    if (entry.function === LEAF_TOPOLOGY) KvmCpuidEntry2.write(supported, { edx: apicId }, at);
  }
  await kvm.setBytes(vcpuFd, Ioctl.KVM_SET_CPUID2, supported.subarray(0, KvmCpuid2.tailOffset(count)));
}
