/** Reads the file of KVM_GET_STATS_FD. Source: Linux, Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. */
import type { SystemCalls } from "@mkvm/kvm-abi";
import type { Statistic, Statistics } from "./protocol.ts";

const headerBytes = 24;
const descriptorBytes = 16;
const kinds = ["cumulative", "instant", "peak", "linear-histogram", "log-histogram"] as const;
const units = ["none", "bytes", "seconds", "cycles", "boolean"] as const;

/** Everything in the file of `fd`, at once. `buffer`: an address with `bufferBytes` of room in the process. */
export function readStatistics(sys: SystemCalls, fd: number, buffer: number, bufferBytes: number): Statistics {
  const { u8, view } = sys.memory;
  const count = sys.pread(fd, buffer, bufferBytes, 0);
  if (count < headerBytes) throw new Error(`statistics of descriptor ${fd} cannot be read: ${count}`);
  if (count === bufferBytes) throw new Error(`statistics of descriptor ${fd} take more than ${bufferBytes} bytes`);
  const u32 = (at: number) => view.getUint32(buffer + at, true);
  const [nameBytes, descriptors, firstDescriptor, data] = [u32(4), u32(8), u32(16), u32(20)];
  const found: Statistics = {};
  for (let index = 0; index < descriptors; index++) {
    const at = firstDescriptor + index * (descriptorBytes + nameBytes);
    const name = text(u8, buffer + at + descriptorBytes, nameBytes);
    const flags = u32(at);
    const exponent = view.getInt16(buffer + at + 4, true);
    const size = view.getUint16(buffer + at + 6, true);
    const offset = data + u32(at + 8);
    const statistic: Statistic = {
      kind: kinds[flags & 0xf] ?? "instant",
      unit: units[(flags >> 4) & 0xf] ?? "none",
      scale: (((flags >> 8) & 0xf) === 0 ? 10 : 2) ** exponent,
      bucketSize: u32(at + 12),
      values: Array.from({ length: size }, (_, value) => Number(view.getBigUint64(buffer + offset + value * 8, true))),
    };
    found[name] = statistic;
  }
  return found;
}

function text(u8: Uint8Array, at: number, length: number): string {
  const bytes = u8.slice(at, at + length);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}
