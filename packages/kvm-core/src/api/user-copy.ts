/** copy_from_user and copy_to_user for the structures of the uapi. */
import { Errno, type Fields, type Hva, type Process, type Struct, type StructInput, type StructValue } from "@mkvm/kvm-abi";

/** The structure at a user address, or -EFAULT. */
export function readUser<F extends Fields>(process: Process, address: Hva, layout: Struct<F>): StructValue<F> | number {
  const bytes = process.memory.read(address, layout.sizeBytes);
  return bytes === undefined ? -Errno.EFAULT : layout.read(bytes);
}

/** 0 or -EFAULT. */
export function writeUser<F extends Fields>(process: Process, address: Hva, layout: Struct<F>, value: StructInput<F>): number {
  return writeUserBytes(process, address, layout.encode(value));
}

export function writeUserBytes(process: Process, address: Hva, bytes: Uint8Array): number {
  return process.memory.write(address, bytes) ? 0 : -Errno.EFAULT;
}

/** A 32-bit number at a user address, or undefined. */
export function readUserU32(process: Process, address: Hva): number | undefined {
  const bytes = process.memory.read(address, 4);
  return bytes && new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
}
export function readUserU64(process: Process, address: Hva): bigint | undefined {
  const bytes = process.memory.read(address, 8);
  return bytes && new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true);
}
export function writeUserU32(process: Process, address: Hva, value: number): number {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return writeUserBytes(process, address, bytes);
}
