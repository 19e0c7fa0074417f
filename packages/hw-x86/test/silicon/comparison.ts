/** Compares what silicon and the engine made of a case. */
import type { CpuModel } from "../../src/engine/cpu.ts";
import { RSP } from "../../src/engine/cpu-state.ts";
import { codeBase, DATA, DATA_BYTES, type TestCase } from "./case-generator.ts";
import { type Outcome, TIMEOUT } from "./engine-runner.ts";

const REGISTERS = [
  "rax",
  "rcx",
  "rdx",
  "rbx",
  "rsp",
  "rbp",
  "rsi",
  "rdi",
  "r8",
  "r9",
  "r10",
  "r11",
  "r12",
  "r13",
  "r14",
  "r15",
];
const BREAKPOINT = 3;
const GENERAL_PROTECTION = 13;
const PAGE_FAULT = 14;
/** #SS, #GP and #PF. */
const ADDRESS_FAULTS = [12, 13, 14];
const KERNEL_HALF = 1n << 63n;
const FLAGS = 0xcd5;

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

const isCanonical = (address: bigint): boolean => BigInt.asUintN(64, BigInt.asIntN(48, address)) === address;

/** Index of the instruction that faulted, or of the INT3 that ends the case; -1 when RIP left the case's instructions. */
export function faultIndex(test: TestCase, outcome: Outcome): number {
  return test.starts.indexOf(Number(outcome.rip - BigInt(codeBase(test.codeSize))));
}

export interface CompareOptions {
  /** FPU and vector state too. */
  readonly fx: boolean;
  /** Whose silicon it was; the engine's model has the same. */
  readonly vendor: CpuModel["vendor"];
  /** The processor has upper halves of vector registers. */
  readonly hasAvx2: boolean;
  /** False: a #GP with a stack pointer that is not canonical may be the kernel's answer, and says nothing of the processor. */
  readonly allowsAnyStack: boolean;
}

/** What differs, one line for each; empty when nothing does. RIP of a breakpoint is that of INT3 in both. */
export function compareOutcomes(test: TestCase, silicon: Outcome, engine: Outcome, options: CompareOptions): string[] {
  const differences: string[] = [];
  const check = (what: string, ours: number | bigint, theirs: number | bigint): void => {
    if (ours !== theirs) differences.push(`${what}: engine ${hex(ours)}, silicon ${hex(theirs)}`);
  };
  if (silicon.vector === TIMEOUT || engine.vector === TIMEOUT) {
    check("end", engine.vector, silicon.vector);
    return differences;
  }
  const isKernels = !options.allowsAnyStack && silicon.vector === GENERAL_PROTECTION && !isCanonical(silicon.gpr[RSP]);
  if (isKernels) return differences;
  // ENTER copies ESP whole, whose upper half on a 16-bit stack is the kernel's: see below
  if (test.codeSize === 16 && test.names.some((name) => name.startsWith("ENTER"))) return differences;
  const siliconRip = silicon.vector === BREAKPOINT ? silicon.rip - 1n : silicon.rip;
  check("rip", engine.rip, siliconRip);
  const index = faultIndex(test, engine);
  // What POPA has loaded when it faults is up to the processor, and which of the two operands of CMPS faults first, when both do
  const name = test.names[index] ?? "";
  const isCmps = name.includes("CMPS");
  if (differences.length === 0 && (name.startsWith("POPA") || (isCmps && options.vendor === "amd"))) return [];
  const isEitherFault = isCmps && [engine, silicon].every(({ vector }) => ADDRESS_FAULTS.includes(vector));
  // So are whether AMD's check a call's target or its push first and, with a stack pointer gone astray, whether a fault is #SS
  const { gpr } = engine;
  const isAstray = test.codeSize !== 16 && (gpr[RSP] - BigInt(DATA) >= BigInt(DATA_BYTES) || gpr[RSP] < BigInt(DATA));
  const isOpen = isAstray || (options.vendor === "amd" && name.startsWith("CALL"));
  if (differences.length === 0 && isOpen && silicon.vector !== engine.vector && ADDRESS_FAULTS.includes(engine.vector))
    return [];
  // The manual leaves it open whether an access may wrap at 4 GiB in a flat segment or exceeds its limit
  const wraps = ({ vector, cr2 }: Outcome): boolean => vector === PAGE_FAULT && cr2 > 0xffff_fff0n;
  const isWrap = test.codeSize === 32 && wraps(engine) !== wraps(silicon);
  if (differences.length === 0 && isWrap && silicon.vector !== engine.vector) return [];
  if (!isEitherFault) check("vector", engine.vector, silicon.vector);
  if (differences.length > 0) return differences;
  // Whether the upper half of the address space is mapped is the host kernel's affair: P says protection there, or absence
  const ignored = silicon.vector === PAGE_FAULT && silicon.cr2 >= KERNEL_HALF ? 1 : 0;
  const siliconError = silicon.vector === BREAKPOINT ? 0 : silicon.error;
  if (!isEitherFault) check("error code", engine.error & ~ignored, siliconError & ~ignored);
  if (silicon.vector === PAGE_FAULT && !isEitherFault) check("cr2", engine.cr2, silicon.cr2);
  // Outside 64-bit mode upper halves are not defined: the kernel's return to a 16-bit stack leaves its own in RSP
  const width = test.codeSize === 64 ? 64 : 32;
  for (let i = 0; i < width / 4; i++) {
    check(REGISTERS[i], BigInt.asUintN(width, engine.gpr[i]), BigInt.asUintN(width, silicon.gpr[i]));
  }
  const undefinedFlags = index < 0 ? FLAGS : test.undefinedFlags[index];
  check("rflags", engine.rflags & FLAGS & ~undefinedFlags, silicon.rflags & FLAGS & ~undefinedFlags);
  check("memory", engine.memory, silicon.memory);
  if (options.fx) {
    // Control, status, tags and MXCSR; not the last opcode and operand, nor MXCSR_MASK, which is the model's
    for (const i of [0, 2, 4, 24, 26]) {
      check(`fx[${i}]`, engine.fx[i] | (engine.fx[i + 1] << 8), silicon.fx[i] | (silicon.fx[i + 1] << 8));
    }
    const lane = (fx: Uint8Array, at: number): bigint => Buffer.from(fx.buffer, fx.byteOffset + at, 8).readBigUInt64LE();
    for (let i = 0; i < 8; i++) {
      check(`st${i} significand`, lane(engine.fx, 32 + i * 16), lane(silicon.fx, 32 + i * 16));
      check(`st${i} exponent`, lane(engine.fx, 40 + i * 16) & 0xffffn, lane(silicon.fx, 40 + i * 16) & 0xffffn);
    }
    for (let i = 0; i < 16; i++) {
      check(`xmm${i} low`, lane(engine.fx, 160 + i * 16), lane(silicon.fx, 160 + i * 16));
      check(`xmm${i} high`, lane(engine.fx, 168 + i * 16), lane(silicon.fx, 168 + i * 16));
      if (!options.hasAvx2) continue;
      check(`ymm${i} low`, lane(engine.ymm, i * 16), lane(silicon.ymm, i * 16));
      check(`ymm${i} high`, lane(engine.ymm, i * 16 + 8), lane(silicon.ymm, i * 16 + 8));
    }
  }
  return differences;
}
