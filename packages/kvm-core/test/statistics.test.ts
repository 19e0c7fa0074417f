import { existsSync, readFileSync, writeFileSync } from "node:fs";
import {
  KvmStatsDesc,
  KvmStatsHeader,
  type Section,
  STATS_NAME_BYTES,
  StatsType,
  StatsUnit,
  VcpuStatistics,
  VmStatistics,
} from "@mkvm/kvm-abi";
import { describe, expect, it } from "vitest";
import {
  HISTOGRAM_BUCKETS,
  histogramBucket,
  PIC_REQUEST,
  type Row,
  type StatisticsTable,
  statisticsTable,
  VCPU_TABLE,
  VcpuCounters,
  VcpuStat,
  VM_TABLE,
  VmCounters,
  VmStat,
} from "../src/index.ts";
import { counter, flag, histogramNs } from "../src/statistics/row.ts";

/** Names and places of released rows: rows behind these may be added, nothing among them may change. Made anew with RECORD_STATISTICS=1. */
const RECORD = new URL("./recorded-statistics.json", import.meta.url);

const tables: [string, StatisticsTable][] = [
  ["VM", VM_TABLE],
  ["vCPU", VCPU_TABLE],
];

/** The whole file, as a reader that asks for `chunk` bytes at a time gets it. */
function fileOf(statistics: VmCounters | VcpuCounters, chunk = 1 << 20): Uint8Array {
  const parts: number[] = [];
  const into = new Uint8Array(chunk);
  for (let at = 0; ; ) {
    const count = statistics.read(into, at);
    if (count === 0) return Uint8Array.from(parts);
    for (let index = 0; index < count; index++) parts.push(into[index]!);
    at += count;
  }
}
const textAt = (bytes: Uint8Array, at: number): string =>
  new TextDecoder().decode(bytes.subarray(at, at + STATS_NAME_BYTES)).replace(/\0.*$/s, "");

let now = 0;
const clock = { monotonicNs: () => now, realtimeNs: () => 0n, createTimer: () => expect.fail("no timer is needed") };

describe.each(tables)("the table of a %s", (name, table) => {
  it("has each descriptor where the header says, with size, offset and flags of its row", () => {
    const statistics = name === "VM" ? new VmCounters(7) : new VcpuCounters(7, 3, clock, false);
    statistics.words.forEach((_, index) => {
      statistics.words[index] = 2 ** 40 + index;
    });
    const bytes = fileOf(statistics);
    const header = KvmStatsHeader.read(bytes);
    expect(header).toMatchObject({ flags: 0, name_size: 48, num_desc: table.rows.length, id_offset: 24, desc_offset: 72 });
    expect(textAt(bytes, header.id_offset)).toBe(name === "VM" ? "kvm-7" : "kvm-7/vcpu-3");
    let offset = 0;
    table.rows.forEach((row, index) => {
      const at = header.desc_offset + index * (KvmStatsDesc.sizeBytes + STATS_NAME_BYTES);
      const descriptor = KvmStatsDesc.read(bytes, at);
      expect(textAt(bytes, at + KvmStatsDesc.sizeBytes)).toBe(row.name);
      expect(descriptor).toMatchObject({ size: row.words, offset, exponent: row.unit === "seconds" ? -9 : 0, bucket_size: 0 });
      expect((descriptor.flags & StatsType.KVM_STATS_TYPE_MASK) === StatsType.KVM_STATS_TYPE_LOG_HIST).toBe(row.words > 1);
      expect((descriptor.flags & StatsUnit.KVM_STATS_UNIT_MASK) === StatsUnit.KVM_STATS_UNIT_SECONDS).toBe(
        row.unit === "seconds",
      );
      const data = new DataView(bytes.buffer, header.data_offset + offset);
      for (let word = 0; word < row.words; word++) {
        expect(data.getBigUint64(word * 8, true)).toBe(2n ** 40n + BigInt(offset / 8 + word));
      }
      offset += row.words * 8;
    });
    expect(bytes.length).toBe(header.data_offset + offset);
  });

  it("keeps the rows that readers know at their places", () => {
    const rows = table.rows.map((row) => `${table.word[row.name]} ${row.name} ${row.kind} ${row.unit} ${row.words}`);
    const recorded: Record<string, string[]> = existsSync(RECORD) ? JSON.parse(readFileSync(RECORD, "utf8")) : {};
    if (process.env.RECORD_STATISTICS) {
      writeFileSync(RECORD, `${JSON.stringify({ ...recorded, [name]: rows }, undefined, 2)}\n`);
      recorded[name] = rows;
    }
    expect(rows.slice(0, recorded[name]!.length)).toEqual(recorded[name]);
    expect(rows.length, "new rows: record them").toBe(recorded[name]!.length);
  });
});

describe("a file of statistics", () => {
  it("reads the same in pieces of any size, and 0 bytes at and behind its end", () => {
    const statistics = new VcpuCounters(1, 0, clock, false);
    statistics.words[VcpuStat.exits] = 2 ** 33 + 5;
    const whole = fileOf(statistics);
    expect(fileOf(statistics, 1000)).toEqual(whole);
    const into = new Uint8Array(13);
    const at = KvmStatsHeader.get(whole, "data_offset") + VcpuStat.exits * 8;
    expect(statistics.read(into, at - 3)).toBe(13);
    expect(into).toEqual(whole.subarray(at - 3, at + 10));
    expect(statistics.read(into, whole.length - 1)).toBe(1);
    expect(statistics.read(into, whole.length)).toBe(0);
    expect(statistics.read(into, 2 ** 40)).toBe(0);
    expect(statistics.read(new Uint8Array(0), 0)).toBe(0);
  });
  it("cannot be laid out with a name that is too long or comes twice, or with too many rows", () => {
    const rows = (...names: string[]): Row[] => names.map((each) => counter(each, ""));
    expect(() => statisticsTable(rows("a", "a"))).toThrow("two statistics are called a");
    expect(() => statisticsTable(rows("a".repeat(48)))).toThrow("longer than 47 bytes");
    expect(statisticsTable(rows("a".repeat(47))).totalWords).toBe(1);
    expect(() => statisticsTable(rows(...Array.from({ length: 400 }, (_, index) => `r${index}`)))).toThrow("do not fit");
  });
});

describe("histograms", () => {
  it("have zeros, then powers of two, and all above in the last bucket", () => {
    expect([0, 1, 2, 3, 4, 7, 8].map(histogramBucket)).toEqual([0, 1, 2, 2, 3, 3, 4]);
    expect(histogramBucket(2 ** 30 - 1)).toBe(30);
    expect(histogramBucket(2 ** 30)).toBe(31);
    expect(histogramBucket(2 ** 31 - 1)).toBe(31);
    expect(histogramBucket(2 ** 31)).toBe(31);
    expect(histogramBucket(1e15)).toBe(HISTOGRAM_BUCKETS - 1);
  });
});

describe("latencies", () => {
  it("go from exit to entry by reason, and from request to injection", () => {
    const vcpu = new VcpuCounters(1, 0, clock, true);
    now = 1000;
    vcpu.interruptRequested(0x31);
    vcpu.interruptRequested(PIC_REQUEST);
    vcpu.exited(10);
    now = 1005;
    vcpu.entering();
    vcpu.interruptTaken(0x31);
    vcpu.interruptTaken(0x31);
    now = 1100;
    vcpu.interruptTaken(PIC_REQUEST);
    vcpu.entering();
    expect(vcpu.words[VcpuStat.exit_cpuid]).toBe(1);
    expect([...vcpu.words.subarray(VcpuStat.exit_latency_cpuid, VcpuStat.exit_latency_cpuid + 5)]).toEqual([0, 0, 0, 1, 0]);
    const interrupts = vcpu.words.subarray(VcpuStat.interrupt_latency, VcpuStat.interrupt_latency + HISTOGRAM_BUCKETS);
    expect([interrupts[3], interrupts[7], interrupts.reduce((sum, each) => sum + each)]).toEqual([1, 1, 2]);
  });
  it("are not taken unless they are asked for, and no clock is read", () => {
    const vcpu = new VcpuCounters(1, 0, { ...clock, monotonicNs: () => expect.fail("the clock was read") }, false);
    vcpu.interruptRequested(0x31);
    vcpu.exited(10);
    vcpu.entering();
    vcpu.interruptTaken(0x31);
    expect(vcpu.words.subarray(VcpuStat.interrupt_latency).reduce((sum, each) => sum + each)).toBe(1);
    expect(vcpu.words[VcpuStat.exit_cpuid]).toBe(1);
  });
  it("count reasons without a name as unknown, latency and all", () => {
    const vcpu = new VcpuCounters(1, 0, clock, true);
    for (const reason of [35, 127, 128, 0xffff]) {
      vcpu.exited(reason);
      vcpu.entering();
    }
    expect(vcpu.words[VcpuStat.exit_unknown]).toBe(4);
    expect(vcpu.words[VcpuStat.exits]).toBe(4);
    expect(vcpu.words.reduce((sum, each) => sum + each)).toBe(8);
  });
});

function entriesOf(layout: typeof VmStatistics | typeof VcpuStatistics, section: Section) {
  const decoded = layout.decode(section);
  if (typeof decoded === "string") throw new Error(decoded);
  return decoded.entries;
}

function decoded(section: Section): Exclude<ReturnType<typeof VcpuStatistics.decode>, string> {
  const values = VcpuStatistics.decode(section);
  if (typeof values === "string") throw new Error(values);
  return values;
}

describe("the portable section", () => {
  it("has values that grow, ascending by name, without zeros and without what is only so now", () => {
    const vm = new VmCounters(1);
    vm.words[VmStat.pages_4k] = 5;
    vm.words[VmStat.remote_tlb_flush] = 3;
    vm.words[VmStat.mmu_cache_miss] = 4;
    expect(
      entriesOf(VmStatistics, vm.save(VmStatistics, 0)).map(({ name, bucket, value }) => [textAt(name, 0), bucket, value]),
    ).toEqual([
      ["mmu_cache_miss", 0, 4n],
      ["remote_tlb_flush", 0, 3n],
    ]);
  });
  it("comes back as it went in, and keeps what a newer side has and this one does not", () => {
    const sent = new VcpuCounters(1, 0, clock, false);
    sent.words[VcpuStat.exits] = 2 ** 50;
    sent.words[VcpuStat.halt_wait_hist + 31] = 9;
    const name = new Uint8Array(STATS_NAME_BYTES);
    name.set(new TextEncoder().encode("future_thing"));
    const unknown = { name, bucket: 2, reserved: 0, value: 77n };
    const known = entriesOf(VcpuStatistics, sent.save(VcpuStatistics, 1));
    const histogram = known.find((entry) => entry.bucket === 31)!;
    const entries = [...known, unknown, { ...histogram, bucket: 40 }].sort((a, b) =>
      textAt(a.name, 0) < textAt(b.name, 0) ? -1 : textAt(a.name, 0) > textAt(b.name, 0) ? 1 : a.bucket - b.bucket,
    );
    const received = new VcpuCounters(1, 0, clock, false);
    received.words[VcpuStat.io_exits] = 5;
    received.words[VcpuStat.blocking] = 1;
    const section = VcpuStatistics.encode(1, {}, entries);
    expect(received.restore(VcpuStatistics, section)).toBeUndefined();
    expect(received.words[VcpuStat.exits]).toBe(2 ** 50);
    expect(received.words[VcpuStat.halt_wait_hist + 31]).toBe(9);
    expect(received.words[VcpuStat.io_exits]).toBe(0);
    expect(received.words[VcpuStat.blocking]).toBe(1);
    expect(received.save(VcpuStatistics, 1)).toEqual(section);
  });
  it("is the same whether one of its shape was there before or not", () => {
    // More shapes than are remembered, each met again with other values, and once by a side that did not make it
    const used = Array.from({ length: 40 }, (_, round) => [
      VcpuStat.exits,
      VcpuStat.io_exits,
      VcpuStat.halt_wait_hist + (round % 32),
      ...(round < 32 ? [] : [VcpuStat.halt_wakeup]),
    ]);
    const sections = [1, 2 ** 40, 3].map((value) =>
      used.map((words) => {
        const vcpu = new VcpuCounters(1, 0, clock, false);
        words.forEach((word, index) => {
          vcpu.words[word] = value + index;
        });
        const section = vcpu.save(VcpuStatistics, 1);
        const { entries } = decoded(section);
        expect(entries.map(({ value: saved }) => Number(saved)).sort((a, b) => a - b)).toEqual(words.map((_, i) => value + i));
        const received = new VcpuCounters(1, 0, clock, false);
        received.words[VcpuStat.halt_wait_ns] = 77;
        expect(received.restore(VcpuStatistics, section)).toBeUndefined();
        expect([...received.words]).toEqual([...vcpu.words]);
        expect(received.save(VcpuStatistics, 1)).toEqual(section);
        return section;
      }),
    );
    const names = (of: Section[] | undefined) => of?.map((section) => decoded(section).entries.map(({ name }) => name));
    expect(names(sections[1])).toEqual(names(sections[0]));
    expect(names(sections[2])).toEqual(names(sections[0]));
  });
  it("that is cut short is refused, and nothing has changed", () => {
    const vcpu = new VcpuCounters(1, 0, clock, false);
    vcpu.words[VcpuStat.exits] = 7;
    const section = vcpu.save(VcpuStatistics, 1);
    vcpu.words[VcpuStat.exits] = 8;
    const cut = { ...section, bytes: section.bytes.subarray(0, -1) };
    expect(vcpu.restore(VcpuStatistics, cut)).toMatch(/vcpu.statistics\[1\] has \d+ bytes where/);
    expect(vcpu.words[VcpuStat.exits]).toBe(8);
  });
});

describe("rows", () => {
  it("say what counts them, and why they stay 0 where they do", () => {
    for (const [, table] of tables) {
      for (const row of table.rows) {
        expect(row.counts, row.name).toMatch(/\w/);
        expect(row.name).toMatch(/^[a-z][a-z0-9_]*$/);
        expect([row.never, row.neverInV1, row.neverInV2].filter((why) => why !== undefined).length, row.name).toBeLessThan(2);
      }
    }
    expect([flag("a", "").unit, histogramNs("b", "").words]).toEqual(["boolean", 32]);
  });
});
