/** CPUID tables between user space and a vCPU, with the growth by -E2BIG that VMMs rely on. */
import { Errno, type Hva, KvmCpuid, KvmCpuid2, KvmCpuidEntry, KvmCpuidEntry2, type Process } from "@mkvm/kvm-abi";
import type { CpuidEntry } from "../cpuid-table.ts";
import { readUserU32, writeUserBytes, writeUserU32 } from "./user-copy.ts";

/** KVM_MAX_CPUID_ENTRIES */
export const MAX_CPUID_ENTRIES = 256;

/** KVM_GET_SUPPORTED_CPUID, KVM_GET_CPUID2: -E2BIG when the caller's array is too small. */
export function copyCpuidOut(process: Process, address: Hva, entries: readonly CpuidEntry[], tellSize: boolean): number {
  const room = readUserU32(process, address);
  if (room === undefined) return -Errno.EFAULT;
  if (room < entries.length) {
    if (tellSize) {
      const failed = writeUserU32(process, address, entries.length);
      if (failed !== 0) return failed;
    }
    return -Errno.E2BIG;
  }
  const bytes = new Uint8Array(entries.length * KvmCpuidEntry2.sizeBytes);
  entries.forEach((entry, index) => {
    KvmCpuidEntry2.write(bytes, entry, index * KvmCpuidEntry2.sizeBytes);
  });
  return writeUserBytes(process, address + KvmCpuid2.sizeBytes, bytes) || writeUserU32(process, address, entries.length);
}

/** KVM_SET_CPUID2: the table or a negative errno. */
export function copyCpuid2In(process: Process, address: Hva): CpuidEntry[] | number {
  const count = readUserU32(process, address);
  if (count === undefined) return -Errno.EFAULT;
  if (count > MAX_CPUID_ENTRIES) return -Errno.E2BIG;
  const bytes = process.memory.read(address + KvmCpuid2.sizeBytes, count * KvmCpuidEntry2.sizeBytes);
  if (bytes === undefined) return -Errno.EFAULT;
  return Array.from({ length: count }, (_, index) => KvmCpuidEntry2.read(bytes, index * KvmCpuidEntry2.sizeBytes));
}

/** KVM_SET_CPUID: entries without index. */
export function copyCpuidIn(process: Process, address: Hva): CpuidEntry[] | number {
  const count = readUserU32(process, address);
  if (count === undefined) return -Errno.EFAULT;
  if (count > MAX_CPUID_ENTRIES) return -Errno.E2BIG;
  const bytes = process.memory.read(address + KvmCpuid.sizeBytes, count * KvmCpuidEntry.sizeBytes);
  if (bytes === undefined) return -Errno.EFAULT;
  return Array.from({ length: count }, (_, index) => {
    const { padding: _padding, ...entry } = KvmCpuidEntry.read(bytes, index * KvmCpuidEntry.sizeBytes);
    return { ...entry, index: 0, flags: 0, padding: [0, 0, 0] };
  });
}
