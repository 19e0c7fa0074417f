/** Compares what silicon and the engine made of a case. */
import { RSP } from "../../src/engine/cpu-state.ts";
import { CODE, DATA, DATA_BYTES, type TestCase } from "./case-generator.ts";
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
const PAGE_FAULT = 14;
/** #SS, #GP and #PF. */
const ADDRESS_FAULTS = [12, 13, 14];
const KERNEL_HALF = 1n << 63n;
const FLAGS = 0xcd5;

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** Index of the instruction that faulted, or of the INT3 that ends the case; -1 when RIP left the case's instructions. */
export function faultIndex(test: TestCase, outcome: Outcome): number {
  return test.starts.indexOf(Number(outcome.rip - BigInt(CODE)));
}

export interface CompareOptions {
  /** FPU and vector state too. */
  readonly fx: boolean;
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
  const siliconRip = silicon.vector === BREAKPOINT ? silicon.rip - 1n : silicon.rip;
  check("rip", engine.rip, siliconRip);
  const index = faultIndex(test, engine);
  // Which of its two operands faults first is up to the processor, when both do
  if (differences.length === 0 && index >= 0 && test.names[index]?.includes("CMPS")) return [];
  // With a stack pointer gone astray, whether its fault is #SS and whether a call's target or its push comes first differ, too
  const isAstray = engine.gpr[RSP] - BigInt(DATA) >= BigInt(DATA_BYTES) || engine.gpr[RSP] < BigInt(DATA);
  if (differences.length === 0 && isAstray && silicon.vector !== engine.vector && ADDRESS_FAULTS.includes(engine.vector))
    return [];
  // The manual leaves it open whether an access may wrap at 4 GiB in a flat segment or exceeds its limit
  const isWrap = test.codeSize === 32 && engine.vector === PAGE_FAULT && engine.cr2 > 0xffff_fff0n;
  if (differences.length === 0 && isWrap && silicon.vector !== PAGE_FAULT) return [];
  check("vector", engine.vector, silicon.vector);
  if (differences.length > 0) return differences;
  // Whether the upper half of the address space is mapped is the host kernel's affair: P says protection there, or absence
  const ignored = silicon.vector === PAGE_FAULT && silicon.cr2 >= KERNEL_HALF ? 1 : 0;
  check("error code", engine.error & ~ignored, (silicon.vector === BREAKPOINT ? 0 : silicon.error) & ~ignored);
  if (silicon.vector === PAGE_FAULT) check("cr2", engine.cr2, silicon.cr2);
  for (let i = 0; i < (test.codeSize === 64 ? 16 : 8); i++) check(REGISTERS[i], engine.gpr[i], silicon.gpr[i]);
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
    }
  }
  return differences;
}
