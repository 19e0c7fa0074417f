import { expect, test } from "vitest";
import { parseArguments } from "../src/arguments.ts";
import { CPU_MODELS, limitedTo } from "../src/cpu-models.ts";
import type { CpuidEntry } from "../src/cpuid.ts";

const ALL = 0xffff_ffff;
const entry = (leaf: number, index = 0, registers: Partial<CpuidEntry> = {}): CpuidEntry => ({
  function: leaf,
  index,
  flags: 0,
  eax: ALL,
  ebx: ALL,
  ecx: ALL,
  edx: ALL,
  padding: [0, 0, 0],
  ...registers,
});
const everything = [
  entry(0),
  entry(1),
  entry(7),
  entry(7, 1),
  ...[0, 1, 2, 5, 9].map((index) => entry(0xd, index)),
  entry(0x8000_0001),
];
const find = (table: readonly CpuidEntry[], leaf: number, index = 0): CpuidEntry | undefined =>
  table.find((one) => one.function === leaf && one.index === index);
const bit = (word: number | undefined, index: number): number => ((word ?? 0) >>> index) & 1;

test("a level has its own sets and those below, and none of the sets beyond", () => {
  const rows = CPU_MODELS.map((model) => {
    const table = limitedTo(model, everything);
    const leaf1 = find(table, 1)?.ecx;
    const leaf7 = find(table, 7);
    const sets = {
      SSE3: bit(leaf1, 0),
      "SSE4.2": bit(leaf1, 20),
      AVX: bit(leaf1, 28),
      AVX2: bit(leaf7?.ebx, 5),
      AES: bit(leaf1, 25),
    };
    return [
      model,
      sets,
      { AVX512F: bit(leaf7?.ebx, 16), LZCNT: bit(find(table, 0x8000_0001)?.ecx, 5), SMEP: bit(leaf7?.ebx, 7) },
    ];
  });
  expect(rows).toEqual([
    ["x86-64-v1", { SSE3: 0, "SSE4.2": 0, AVX: 0, AVX2: 0, AES: 0 }, { AVX512F: 0, LZCNT: 0, SMEP: 1 }],
    ["x86-64-v2", { SSE3: 1, "SSE4.2": 1, AVX: 0, AVX2: 0, AES: 0 }, { AVX512F: 0, LZCNT: 0, SMEP: 1 }],
    ["x86-64-v3", { SSE3: 1, "SSE4.2": 1, AVX: 1, AVX2: 1, AES: 0 }, { AVX512F: 0, LZCNT: 1, SMEP: 1 }],
    ["max", { SSE3: 1, "SSE4.2": 1, AVX: 1, AVX2: 1, AES: 1 }, { AVX512F: 1, LZCNT: 1, SMEP: 1 }],
  ]);
});

test("without XSAVE there are no components of it, and with it those of the level", () => {
  expect(find(limitedTo("x86-64-v2", everything), 0xd)).toBeUndefined();
  const table = limitedTo("x86-64-v3", everything);
  expect(find(table, 0xd)?.eax).toBe(0x207);
  expect([2, 5, 9].map((index) => find(table, 0xd, index) !== undefined)).toEqual([true, false, true]);
});

test("a model that KVM cannot give, and one that nobody knows, are refused by name", () => {
  const poor = everything.map((one) => (one.function === 7 ? { ...one, ebx: ALL & ~(1 << 5) } : one));
  expect(() => limitedTo("x86-64-v3", poor)).toThrow("--cpu x86-64-v3: this KVM does not offer AVX2; choose a lower level");
  expect(() => limitedTo("x86-64-v2", poor)).not.toThrow();
  expect(() => parseArguments(["--kernel", "a", "--cpu", "skylake"])).toThrow(
    "--cpu skylake: there is no such CPU model; one of x86-64-v1, x86-64-v2, x86-64-v3, max",
  );
  expect(parseArguments(["--kernel", "a"]).cpuModel).toBe("max");
});
