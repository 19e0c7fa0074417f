/** KVM_GET_MSRS, KVM_SET_MSRS and the index lists. */
import { Errno, type Hva, KvmMsrEntry, KvmMsrList, KvmMsrs, type Process } from "@mkvm/kvm-abi";
import { readMsr, writeMsr } from "../guest/msr-access.ts";
import type { VcpuParts } from "../guest/vcpu-parts.ts";
import { readUserU32, writeUserBytes, writeUserU32 } from "./user-copy.ts";

/** As Linux: nmsrs may not reach this. */
const MAX_IO_MSRS = 256;

/** Number of MSRs read before the first that cannot be. */
export function getMsrs(process: Process, address: Hva, read: (index: number) => bigint | string | undefined): number {
  return forEachEntry(process, address, (entry, bytes, offset) => {
    const value = read(entry.index);
    if (typeof value !== "bigint") return false;
    KvmMsrEntry.set(bytes, "data", value, offset);
    return true;
  });
}

export function getVcpuMsrs(vcpu: VcpuParts, address: Hva): number {
  return getMsrs(vcpu.vm.process, address, (index) => readMsr(vcpu, index, true));
}

export function setVcpuMsrs(vcpu: VcpuParts, address: Hva): number {
  return forEachEntry(vcpu.vm.process, address, (entry) => writeMsr(vcpu, entry.index, entry.data, true) === "ok", false);
}

function forEachEntry(
  process: Process,
  address: Hva,
  each: (entry: { index: number; data: bigint }, bytes: Uint8Array, offset: number) => boolean,
  writeBack = true,
): number {
  const count = readUserU32(process, address);
  if (count === undefined) return -Errno.EFAULT;
  if (count >= MAX_IO_MSRS) return -Errno.E2BIG;
  const bytes = process.memory.read(address + KvmMsrs.sizeBytes, count * KvmMsrEntry.sizeBytes);
  if (bytes === undefined) return -Errno.EFAULT;
  const copy = bytes.slice();
  let done = 0;
  while (done < count) {
    const offset = done * KvmMsrEntry.sizeBytes;
    if (!each(KvmMsrEntry.read(copy, offset), copy, offset)) break;
    done++;
  }
  if (writeBack && writeUserBytes(process, address + KvmMsrs.sizeBytes, copy) !== 0) return -Errno.EFAULT;
  return done;
}

/** KVM_GET_MSR_INDEX_LIST: the count always comes back; -E2BIG when the array is too small. */
export function copyMsrList(process: Process, address: Hva, indices: readonly number[]): number {
  const room = readUserU32(process, address);
  if (room === undefined) return -Errno.EFAULT;
  const failed = writeUserU32(process, address, indices.length);
  if (failed !== 0) return failed;
  if (room < indices.length) return -Errno.E2BIG;
  const bytes = new Uint8Array(indices.length * 4);
  const view = new DataView(bytes.buffer);
  indices.forEach((index, position) => {
    view.setUint32(position * 4, index, true);
  });
  return writeUserBytes(process, address + KvmMsrList.sizeBytes, bytes);
}
