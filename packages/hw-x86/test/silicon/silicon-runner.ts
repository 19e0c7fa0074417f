/** Runs test cases on the processor at hand with the C program beside this file, compiled when first needed. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CpuModel } from "../../src/engine/cpu.ts";
import { RSP } from "../../src/engine/cpu-state.ts";
import { CASE_CODE, type CaseCodeSize, DATA_BYTES, dataBase, type TestCase } from "./case-generator.ts";
import type { Outcome } from "./engine-runner.ts";
import { initialFx } from "./fpu-state.ts";
import { processorFlags, processorVendor } from "./processor.ts";

const CASE_BYTES = 128 + 8 + 8 + CASE_CODE + 512 + 256;
const RESULT_BYTES = 128 + 24 + 8 + 8 + 512 + 256;
const BREAKPOINT = 3;
const NOT_CANONICAL = 1n << 62n;

export interface Silicon {
  /** Whose processor this is. */
  readonly vendor: CpuModel["vendor"];
  /** Code sizes that the kernel lets programs run in: some give no 16-bit segments, some no compatibility mode. */
  readonly codeSizes: readonly CaseCodeSize[];
  /** AVX, AVX2, FMA and F16C: without them cases have no upper halves of registers. */
  readonly hasAvx2: boolean;
  /** False where the kernel answers a return to user mode with #GP when the stack pointer is not canonical, as no processor does. */
  readonly allowsAnyStack: boolean;
  run(initial: Uint8Array, cases: readonly TestCase[]): Outcome[];
  close(): void;
}

/** Undefined, and why, where cases cannot run natively. */
export function openSilicon(): Silicon | string {
  if (process.platform !== "linux" || process.arch !== "x64")
    return `needs Linux on x86-64, this is ${process.platform} on ${process.arch}`;
  const vendor = processorVendor();
  if (vendor === undefined) return "needs a processor by Intel or AMD";
  const folder = mkdtempSync(join(tmpdir(), "mkvm-silicon-"));
  const program = join(folder, "run-cases");
  const source = new URL("run-cases.c", import.meta.url).pathname;
  const compiler = spawnSync("gcc", ["-O1", "-o", program, source], { encoding: "utf8" });
  if (compiler.status !== 0) {
    rmSync(folder, { recursive: true });
    return compiler.error ? "needs gcc" : `gcc failed: ${compiler.stderr}`;
  }
  const reaches = (codeSize: CaseCodeSize, stackPointer: bigint): boolean => {
    try {
      const [outcome] = runCases(folder, program, new Uint8Array(DATA_BYTES), [breakpointCase(codeSize, stackPointer)]);
      return outcome?.vector === BREAKPOINT;
    } catch {
      return false;
    }
  };
  return {
    vendor,
    hasAvx2: ["avx2", "fma", "f16c"].every((flag) => processorFlags().has(flag)),
    codeSizes: ([64, 32, 16] as const).filter((codeSize) => reaches(codeSize, BigInt(dataBase(codeSize)))),
    allowsAnyStack: reaches(64, NOT_CANONICAL),
    run: (initial, cases) => runCases(folder, program, initial, cases),
    close: () => rmSync(folder, { recursive: true }),
  };
}

/** INT3 alone: ends with its breakpoint wherever it is reached. */
function breakpointCase(codeSize: CaseCodeSize, stackPointer: bigint): TestCase {
  const gpr = new BigUint64Array(16);
  gpr[RSP] = stackPointer;
  const code = Uint8Array.of(0xcc);
  return {
    codeSize,
    gpr,
    rflags: 0x202,
    code,
    starts: [0],
    undefinedFlags: [0],
    names: [],
    fx: initialFx(),
    ymm: new Uint8Array(256),
  };
}

function runCases(folder: string, program: string, initial: Uint8Array, cases: readonly TestCase[]): Outcome[] {
  if (initial.length !== DATA_BYTES) throw new RangeError("the data pages have another size");
  const input = Buffer.alloc(DATA_BYTES + cases.length * CASE_BYTES);
  input.set(initial);
  cases.forEach((test, i) => {
    if (test.code.length > CASE_CODE) throw new RangeError("the case is too long");
    const at = DATA_BYTES + i * CASE_BYTES;
    test.gpr.forEach((value, register) => {
      input.writeBigUInt64LE(value, at + register * 8);
    });
    input.writeBigUInt64LE(BigInt(test.rflags), at + 128);
    input.writeUInt32LE(test.codeSize, at + 136);
    input.writeUInt32LE(test.code.length, at + 140);
    input.set(test.code, at + 144);
    input.set(test.fx, at + 144 + CASE_CODE);
    input.set(test.ymm, at + 144 + CASE_CODE + 512);
  });
  const casesFile = join(folder, "cases");
  const resultsFile = join(folder, "results");
  writeFileSync(casesFile, input);
  rmSync(resultsFile, { force: true });
  const child = spawnSync(program, [casesFile, resultsFile], { encoding: "utf8" });
  if (child.status !== 0) throw new Error(`run-cases ended with ${child.status ?? child.signal}: ${child.stderr}`);
  const output = readFileSync(resultsFile);
  return cases.map((_, i) => {
    const at = i * RESULT_BYTES;
    const gpr = new BigUint64Array(16);
    for (let register = 0; register < 16; register++) gpr[register] = output.readBigUInt64LE(at + register * 8);
    return {
      gpr,
      rip: output.readBigUInt64LE(at + 128),
      rflags: output.readUInt32LE(at + 136),
      cr2: output.readBigUInt64LE(at + 144),
      vector: output.readUInt32LE(at + 152),
      error: output.readUInt32LE(at + 156),
      memory: output.readBigUInt64LE(at + 160),
      fx: new Uint8Array(output.subarray(at + 168, at + 168 + 512)),
      ymm: new Uint8Array(output.subarray(at + 168 + 512, at + RESULT_BYTES)),
    };
  });
}
