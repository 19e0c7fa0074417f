/** read(2) and write(2) on an eventfd. */
import { Errno, type Hva } from "@mkvm/kvm-abi";
import type { EventfdFile } from "../devices/open-file.ts";
import type { KernelProcess } from "./process.ts";
import type { KernelTask } from "./task.ts";

const COUNTER_BYTES = 8;

/** 8, or a negative errno; undefined: it has to wait. */
export function readEventfd(process: KernelProcess, file: EventfdFile, address: Hva, lengthBytes: number): number | undefined {
  if (lengthBytes < COUNTER_BYTES) return -Errno.EINVAL;
  const into = process.memory.view(address, COUNTER_BYTES);
  if (!into) return -Errno.EFAULT;
  const value = file.counter.take();
  if (value === 0n) return file.isNonblocking ? -Errno.EAGAIN : undefined;
  new DataView(into.buffer, into.byteOffset, COUNTER_BYTES).setBigUint64(0, value, true);
  return COUNTER_BYTES;
}

/** Resolves when the read is done, with a signal, or not at all when the process ends (`never`). */
export async function waitForEventfd(
  process: KernelProcess,
  task: KernelTask,
  file: EventfdFile,
  address: Hva,
  never: () => Promise<never>,
): Promise<number> {
  for (;;) {
    const result = readEventfd(process, file, address, COUNTER_BYTES);
    if (result !== undefined) return result;
    if (task.signalPending()) return -Errno.EINTR;
    await file.readable.wait(task);
    if (process.ending) return never();
    if (process.frozen) await process.thawed(task);
    if (process.ending) return never();
  }
}

export function writeEventfd(process: KernelProcess, file: EventfdFile, address: Hva, lengthBytes: number): number {
  if (lengthBytes < COUNTER_BYTES) return -Errno.EINVAL;
  const bytes = process.memory.view(address, COUNTER_BYTES);
  if (!bytes) return -Errno.EFAULT;
  const refused = file.counter.add(new DataView(bytes.buffer, bytes.byteOffset, COUNTER_BYTES).getBigUint64(0, true));
  return refused === 0 ? COUNTER_BYTES : refused;
}
