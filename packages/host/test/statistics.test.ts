import { KvmStatsDesc, KvmStatsHeader } from "@mkvm/kvm-abi";
import { describe, expect, it } from "vitest";
import { statisticsTables } from "../src/cli/statistics-table.ts";
import type { Statistic, VmStatistics } from "../src/index.ts";
import { readBinaryStatistics } from "../src/statistics/binary-statistics.ts";

const NAME = 32;

/** A file with other sizes, places and kinds than our own modules have. */
function file(change: { header?: object; descriptor?: object } = {}): Uint8Array {
  const bytes = new Uint8Array(400);
  const put = (text: string, at: number) => bytes.set(new TextEncoder().encode(text), at);
  KvmStatsHeader.write(bytes, {
    name_size: NAME,
    num_desc: 2,
    id_offset: 300,
    desc_offset: 100,
    data_offset: 40,
    ...change.header,
  });
  put("kvm-9/vcpu-1", 300);
  KvmStatsDesc.write(bytes, { flags: 0x0_10_0 | 0x2, exponent: 20, size: 1, offset: 16, ...change.descriptor }, 100);
  put("most_bytes", 100 + 16);
  KvmStatsDesc.write(bytes, { flags: 0x23, exponent: -9, size: 2, offset: 0, bucket_size: 500 }, 100 + 16 + NAME);
  put("times", 100 + 16 + NAME + 16);
  const view = new DataView(bytes.buffer);
  [3n, 4n, 5n].forEach((value, index) => {
    view.setBigUint64(40 + index * 8, value, true);
  });
  return bytes;
}
/** Reads at most 7 bytes at a time, as a file may. */
const reader = (bytes: Uint8Array) => (into: Uint8Array, offset: number) => {
  const part = bytes.subarray(offset, offset + Math.min(7, into.length));
  into.set(part);
  return part.length;
};

describe("the reader of binary statistics", () => {
  it("follows the header, wherever it leads", () => {
    expect(readBinaryStatistics(reader(file()))).toEqual({
      id: "kvm-9/vcpu-1",
      statistics: [
        { name: "most_bytes", kind: "peak", unit: "none", base: 2, exponent: 20, value: 5 },
        { name: "times", kind: "linear-histogram", unit: "seconds", base: 10, exponent: -9, buckets: [3, 4], bucketSize: 500 },
      ],
    });
  });
  it.each([
    ["header flags 0x1 are not known", { header: { flags: 1 } }],
    ["its id ends after 0 of 32 bytes", { header: { id_offset: 4000 } }],
    ["its descriptors ends after", { header: { num_desc: 50 } }],
    ["there are 4000000 descriptors", { header: { num_desc: 4_000_000 } }],
    ["names take 0 bytes", { header: { name_size: 0 } }],
    ["its data ends after", { descriptor: { offset: 8000 } }],
    ["the data takes", { descriptor: { offset: 0x8000_0000 } }],
    ["most_bytes lies at 3", { descriptor: { offset: 3 } }],
    ["most_bytes has flags 0xf", { descriptor: { flags: 0xf } }],
    ["most_bytes has flags 0x50", { descriptor: { flags: 0x50 } }],
    ["most_bytes has 3 values", { descriptor: { size: 3, offset: 0 } }],
  ])("says what is wrong: %s", (message, change) => {
    expect(() => readBinaryStatistics(reader(file(change)))).toThrow(message);
  });
  it("says so when a read fails", () => {
    expect(() => readBinaryStatistics(() => -14)).toThrow("reading its header failed with errno 14");
    expect(() => readBinaryStatistics(() => 0)).toThrow("its header ends after 0 of 24 bytes");
  });
});

describe("the table of statistics", () => {
  const nanoseconds = { unit: "seconds", base: 10, exponent: -9 } as const;
  const plain = { unit: "none", base: 10, exponent: 0 } as const;
  const look = (exits: number, buckets: number[]): VmStatistics[] => {
    const own: Statistic[] = [
      { name: "exits", kind: "cumulative", ...plain, value: exits },
      { name: "never", kind: "cumulative", ...plain, value: 0 },
      { name: "blocking", kind: "instant", unit: "boolean", base: 10, exponent: 0, value: 1 },
      { name: "waited", kind: "cumulative", ...nanoseconds, value: 1_500_000 * exits },
      { name: "waits", kind: "log-histogram", ...nanoseconds, buckets, bucketSize: 0 },
    ];
    const ofVm: Statistic[] = [{ name: "most", kind: "peak", unit: "bytes", base: 2, exponent: 10, value: 3 }];
    return [
      { pid: 3, process: "vmm", fd: 4, id: "kvm-3", module: "kvm2", statistics: ofVm, vcpus: [{ id: 0, statistics: own }] },
    ];
  };
  it("has a column for the VM and each vCPU, and leaves out what is 0", () => {
    expect(statisticsTables(look(2, [0, 0, 8, 0, 2])).split("\n")).toEqual([
      "process 3 (vmm), VM kvm-3 on kvm2",
      "STATISTIC  VM          VCPU 0",
      "most       3072 bytes  -",
      "exits      -           2",
      "blocking   -           yes",
      "waited     -           3 ms",
      "waits      -           10, half below 4 ns, 99 % in the last bucket",
    ]);
    expect(statisticsTables(look(2, [1]), { all: true })).toMatch(/never +- +0\n/);
  });
  it("shows what has grown since an earlier look", () => {
    const text = statisticsTables(look(5, [1, 0, 0]), { before: look(3, [0, 0, 0]) });
    expect(text).toMatch(/exits +- +5 \+2\n/);
    expect(text).toMatch(/waited +- +7.5 ms \+3 ms\n/);
    expect(text).toMatch(/waits +- +1, half below 1 ns, 99 % below 1 ns \+1$/);
    expect(text).toMatch(/most +3072 bytes +-\n/);
  });
});
