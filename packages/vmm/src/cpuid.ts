import { Ioctl, KvmCpuid2, KvmCpuidEntry2, type StructValue } from "@mkvm/kvm-abi";
import { type CpuModelName, limitedTo } from "./cpu-models.ts";
import { withTopology } from "./cpu-topology.ts";
import type { KvmCalls } from "./kvm-calls.ts";

export type CpuidEntry = StructValue<(typeof KvmCpuidEntry2)["fields"]>;

const MOST_ENTRIES = 256;
const LEAF_FEATURES = 1;
const HYPERVISOR_PRESENT = 1 << 31;
const LEAF_ADDRESS_SIZES = 0x8000_0008;

/** A vCPU's place among those of its VM. */
export interface VcpuPlace {
  readonly apicId: number;
  readonly cpus: number;
}

/** What the processor is said to be. */
export interface CpuDescription {
  readonly model: CpuModelName;
  /** Width of physical addresses; undefined: as KVM has it. */
  readonly physicalAddressBits: number | undefined;
}

/** Gives a vCPU what KVM supports of the model, with its own APIC id and its place among the vCPUs. */
export async function setCpuid(
  kvm: KvmCalls,
  systemFd: number,
  vcpuFd: number,
  { apicId, cpus }: VcpuPlace,
  { model, physicalAddressBits }: CpuDescription,
): Promise<void> {
  const request = new Uint8Array(KvmCpuid2.tailOffset(MOST_ENTRIES));
  KvmCpuid2.set(request, "nent", MOST_ENTRIES);
  const supported = await kvm.exchange(systemFd, Ioctl.KVM_GET_SUPPORTED_CPUID, request);
  const entries = Array.from({ length: KvmCpuid2.get(supported, "nent") }, (_, index) => {
    const entry = KvmCpuidEntry2.read(supported, KvmCpuid2.tailOffset(index));
    if (entry.function === LEAF_FEATURES) return { ...entry, ecx: (entry.ecx | HYPERVISOR_PRESENT) >>> 0 };
    if (entry.function === LEAF_ADDRESS_SIZES && physicalAddressBits !== undefined)
      return { ...entry, eax: ((entry.eax & ~0xff) | physicalAddressBits) >>> 0 };
    return entry;
  });
  const table = withTopology(limitedTo(model, entries), apicId, cpus);
  const bytes = new Uint8Array(KvmCpuid2.tailOffset(table.length));
  KvmCpuid2.set(bytes, "nent", table.length);
  for (const [index, entry] of table.entries()) KvmCpuidEntry2.write(bytes, entry, KvmCpuid2.tailOffset(index));
  await kvm.setBytes(vcpuFd, Ioctl.KVM_SET_CPUID2, bytes);
}
