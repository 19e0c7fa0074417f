import { expect, test } from "vitest";
import { parseArguments } from "../src/arguments.ts";
import { withTopology } from "../src/cpu-topology.ts";
import type { CpuidEntry } from "../src/cpuid.ts";

const entry = (leaf: number, values: Partial<CpuidEntry> = {}): CpuidEntry => ({
  function: leaf,
  index: 0,
  flags: 0,
  eax: 0,
  ebx: 0,
  ecx: 0,
  edx: 0,
  padding: [0, 0, 0],
  ...values,
});
const intel = entry(0, { ebx: 0x756e_6547 });
const amd = entry(0, { ebx: 0x6874_7541 });
const find = (table: CpuidEntry[], leaf: number, index = 0) =>
  table.find((each) => each.function === leaf && each.index === index)!;

test("each vCPU finds its APIC id and the number of the others", () => {
  const table = withTopology([intel, entry(1, { ebx: 0x0800, edx: 0x8000_0000 }), entry(0xb, { flags: 1 })], 5, 6);
  expect(find(table, 1)).toMatchObject({ ebx: 0x0506_0800, edx: 0x9000_0000 });
  // One thread in a core; the core's number takes three bits
  expect(find(table, 0xb, 0)).toMatchObject({ flags: 1, eax: 0, ebx: 1, ecx: 0x100, edx: 5 });
  expect(find(table, 0xb, 1)).toMatchObject({ flags: 1, eax: 3, ebx: 6, ecx: 0x201, edx: 5 });
  expect(find(table, 0xb, 2)).toMatchObject({ flags: 1, eax: 0, ebx: 0, ecx: 2, edx: 5 });
});

test("caches say who shares them: the last level is everybody's, the others are each core's own", () => {
  const level = (number: number) => entry(4, { index: number, flags: 1, eax: 1 | (number << 5) | 0x100 });
  const table = withTopology([intel, level(1), level(3), entry(4, { index: 4, flags: 1 })], 0, 4);
  expect(find(table, 4, 1).eax).toBe(0x121 + (3 << 26));
  expect(find(table, 4, 3).eax).toBe(0x161 + (3 << 14) + (3 << 26));
  expect(find(table, 4, 4).eax).toBe(0);
});

test("AMD's leaves say that the processors are cores, and how many", () => {
  const leaves = [entry(0x8000_0001, { ecx: 1 }), entry(0x8000_0008, { eax: 0x3028 })];
  const table = withTopology([amd, ...leaves], 3, 16);
  expect(find(table, 0x8000_0001).ecx).toBe(3);
  expect(find(table, 0x8000_0008)).toMatchObject({ eax: 0x3028, ecx: 0x400f });
  expect(withTopology([intel, ...leaves], 3, 16).slice(1)).toEqual(leaves);
});

test("a single vCPU's table stays as KVM gave it, but for the APIC id and the count", () => {
  const leaves = [amd, entry(4, { eax: 0x121 }), entry(0xb), entry(0x8000_0001), entry(0x8000_0008)];
  expect(withTopology(leaves, 0, 1)).toEqual(leaves);
  expect(find(withTopology([entry(1, { edx: 1 })], 0, 1), 1)).toMatchObject({ ebx: 0x1_0000, edx: 1 });
});

test("1 to 16 vCPUs", () => {
  const cpus = (text: string) => parseArguments(["--kernel", "x", "--cpus", text]).cpus;
  expect([cpus("1"), cpus("16")]).toEqual([1, 16]);
  for (const wrong of ["0", "17", "2.5", "many", ""])
    expect(() => cpus(wrong)).toThrow(`--cpus ${wrong} is out of range; give 1 to 16`);
});
