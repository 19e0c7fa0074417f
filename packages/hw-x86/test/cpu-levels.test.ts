/** Machines that lack instruction sets: CPUID does not offer them, and their encodings are what they were before. */
import { CpuidFeature, Decoder, DecoderOptions } from "iced-x86";
import { describe, expect, test } from "vitest";
import { createLogicalCpu } from "../src/create-logical-cpu.ts";
import { createDecodedOperation, decode, variants } from "../src/engine/decoder/decoder.ts";
import { decoderOfLevel, levelOfVariant } from "../src/engine/decoder/level-decoder.ts";
import { CPU_MODELS, type CpuModelName, type Level } from "../src/engine/system/cpu-levels.ts";
import { createMachine } from "../src/machine.ts";
import { randomCode } from "./decoder-cases.ts";
import { CASE_BYTES } from "./decoder-comparison.ts";
import { chooseSeed, seededRandom } from "./random.ts";
import { createSystemMachine } from "./system-machine.ts";

const UD = 6;
const RBX = 3;

/** First level that has what iced-x86 calls a feature; those that all levels have, or that CR4 and XCR0 decide about, are 1. */
const FEATURE_LEVELS: Readonly<Record<string, Level>> = {
  ...Object.fromEntries(["SSE3", "SSSE3", "SSE4_1", "SSE4_2", "POPCNT", "CMPXCHG16B"].map((name) => [name, 2])),
  ...Object.fromEntries(["MOVBE", "BMI1", "BMI2", "LZCNT"].map((name) => [name, 3])),
  ...Object.fromEntries(["PCLMULQDQ", "AES", "RDRAND", "RDSEED", "ADX", "SHA", "RDPID"].map((name) => [name, 4])),
};

test(`iced-x86 puts instructions into the same sets (seed ${chooseSeed()})`, () => {
  const code = randomCode(seededRandom(chooseSeed()), 64, 60_000);
  const decoder = new Decoder(64, code, DecoderOptions.None);
  const operation = createDecodedOperation();
  const differences = new Set<string>();
  const levels = new Set<Level>();
  for (let at = 0; at + CASE_BYTES <= code.length; at += CASE_BYTES) {
    decoder.position = at;
    const theirs = decoder.decode();
    const features = [...theirs.cpuidFeatures()].map((feature) => CpuidFeature[feature] as string);
    theirs.free();
    if (decode(code, at, CASE_BYTES, 64, operation) !== "ok") continue;
    const variant = variants[operation.handler];
    // Rows that AVX decides about are not told apart further
    if (
      variant === undefined ||
      (features.some((name) => /^AVX/.test(name)) && !features.some((name) => /AES|PCLMUL/.test(name)))
    )
      continue;
    const expected = Math.max(1, ...features.map((name) => FEATURE_LEVELS[name] ?? 1)) as Level;
    levels.add(expected);
    if (levelOfVariant(variant) !== expected)
      differences.add(`${variant.name}: ours ${levelOfVariant(variant)}, theirs ${features.join()}`);
  }
  decoder.free();
  expect([...differences]).toEqual([]);
  expect([...levels].sort()).toEqual([1, 2, 3, 4]);
});

describe("instructions of sets that a machine lacks", () => {
  /** Vector of the fault, or -1, at each level. */
  const outcomes = (...code: number[]): number[] =>
    ([1, 2, 3, 4] as const).map((level) => {
      const machine = createSystemMachine(64, { level });
      machine.code(...code, 0xf4);
      return machine.runToHandler();
    });

  test.each([
    ["ADDSUBPS", [0xf2, 0x0f, 0xd0, 0xc1], 2],
    ["FISTTP", [0xdb, 0x0c, 0x24], 2],
    ["PSHUFB", [0x66, 0x0f, 0x38, 0x00, 0xc1], 2],
    ["PMULLD", [0x66, 0x0f, 0x38, 0x40, 0xc1], 2],
    ["PCMPISTRI", [0x66, 0x0f, 0x3a, 0x63, 0xc1, 0], 2],
    ["POPCNT", [0xf3, 0x0f, 0xb8, 0xc1], 2],
    ["CMPXCHG16B", [0x48, 0x0f, 0xc7, 0x0c, 0x24], 2],
    ["LAHF", [0x9f], 2],
    ["MOVBE", [0x0f, 0x38, 0xf0, 0x04, 0x24], 3],
    ["ANDN", [0xc4, 0xe2, 0x70, 0xf2, 0xc2], 3],
    ["AESENC", [0x66, 0x0f, 0x38, 0xdc, 0xc1], 4],
    ["PCLMULQDQ", [0x66, 0x0f, 0x3a, 0x44, 0xc1, 0], 4],
    ["SHA1NEXTE", [0x0f, 0x38, 0xc8, 0xc1], 4],
    ["RDRAND", [0x0f, 0xc7, 0xf0], 4],
    ["RDSEED", [0x0f, 0xc7, 0xf8], 4],
    ["ADCX", [0x66, 0x0f, 0x38, 0xf6, 0xc1], 4],
  ] as const)("%s is undefined below its level", (_name, code, level) => {
    expect(outcomes(...code)).toEqual([1, 2, 3, 4].map((each) => (each < level ? UD : -1)));
  });

  test("LAHF stays outside 64-bit mode", () => {
    const machine = createSystemMachine(32, { level: 1 });
    machine.code(0x9f, 0xf4);
    expect(machine.runToHandler()).toBe(-1);
  });

  test("LZCNT and TZCNT are BSR and BSF", () => {
    const counts = (opcode: number): number[] =>
      ([2, 3] as const).map((level) => {
        const machine = createSystemMachine(64, { level });
        // mov ecx, 0x100; F3 0F opcode /r ebx, ecx
        machine.code(0xb9, 0, 1, 0, 0, 0xf3, 0x0f, opcode, 0xd9, 0xf4);
        expect(machine.runToHandler()).toBe(-1);
        return Number(machine.engine.reg(RBX));
      });
    expect(counts(0xbd)).toEqual([8, 23]);
    expect(counts(0xbc)).toEqual([8, 8]);
  });

  test("the decoder of max is the decoder itself", () => {
    expect(decoderOfLevel(4)).toBe(decode);
  });
});

describe.each(["intel", "amd"] as const)("a machine of vendor %s", (vendor) => {
  const cpuOf = (cpuModel: CpuModelName) => createLogicalCpu(createMachine({ vendor, cpuModel }), 0, () => undefined);
  const bit = (word: number, index: number): number => (word >>> index) & 1;

  test("offers in CPUID what it has, and what the kernel needs at every level", () => {
    const rows = CPU_MODELS.map((model) => {
      const cpu = cpuOf(model);
      const { ecx, edx } = cpu.cpuid(1, 0);
      const seven = cpu.cpuid(7, 0);
      return [
        bit(ecx, 0),
        bit(ecx, 20),
        bit(ecx, 28),
        bit(seven.ebx, 5),
        bit(ecx, 25),
        cpu.cpuid(0xd, 0).eax,
        bit(edx, 26),
        bit(seven.ebx, 0),
      ];
    });
    // SSE3, SSE4.2, AVX, AVX2, AES, components of XSAVE, SSE2, FSGSBASE
    expect(rows).toEqual([
      [0, 0, 0, 0, 0, 0, 1, 1],
      [1, 1, 0, 0, 0, 0, 1, 1],
      [1, 1, 1, 1, 0, 0x207, 1, 1],
      [1, 1, 1, 1, 1, 0x207, 1, 1],
    ]);
  });

  test("has virtualization at every level", () => {
    const offered = CPU_MODELS.map((model) =>
      vendor === "intel" ? bit(cpuOf(model).cpuid(1, 0).ecx, 5) : bit(cpuOf(model).cpuid(0x8000_0001, 0).ecx, 2),
    );
    expect(offered).toEqual([1, 1, 1, 1]);
  });

  test("saves and loads x87 and SSE state without XSAVE", () => {
    const cpu = cpuOf("x86-64-v1");
    const image = new Uint8Array(4096);
    cpu.xsave(image);
    image[160] = 0x5a;
    image[512] = 3;
    cpu.xrstor(image);
    const back = new Uint8Array(4096);
    cpu.xsave(back);
    expect(back[160]).toBe(0x5a);
  });
});

test("a model that nobody knows is refused with those there are", () => {
  expect(() => createMachine({ cpuModel: "i486" as "max" })).toThrow(
    "no CPU model i486: one of x86-64-v1, x86-64-v2, x86-64-v3, max",
  );
});
