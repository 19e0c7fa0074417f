/**
 * The soft float beside the processor of this machine: single x87 and SSE instructions with random and awkward operands, every
 * rounding mode, precision and mask. Needs gcc and an x86-64 processor.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { state } from "../src/engine/cpu-state.ts";
import { fpuHelpers } from "../src/engine/fpu/helpers.ts";
import { RESULT } from "../src/engine/fpu/sse.ts";
import { OPERAND_ADDRESS } from "../src/engine/fpu/x87-state.ts";
import { prepareSse, SSE_OPERATIONS, TRANSCENDENTAL, X87_OPERATIONS } from "./float-operations.ts";
import { floatCpu, OPERAND_AT, Raised } from "./fpu-state.ts";
import { chooseSeed, type Random, seededRandom } from "./random.ts";
import { processorVendor } from "./silicon/processor.ts";

const CASE_BYTES = 64;
const RESULT_BYTES = 80;
const ENVIRONMENT_AT = OPERAND_AT + 0x100;

const vendor = processorVendor();
function compiler(): string | undefined {
  if (process.arch !== "x64" || process.platform !== "linux") return "no x86-64 Linux";
  if (vendor === undefined) return "no processor by Intel or AMD";
  try {
    execFileSync("gcc", ["--version"], { stdio: "ignore" });
    return undefined;
  } catch {
    return "no gcc";
  }
}
const missing = compiler();
const folder = missing === undefined ? mkdtempSync(join(tmpdir(), "float-vectors-")) : "";
const seed = chooseSeed();

afterAll(() => {
  if (folder !== "") rmSync(folder, { recursive: true });
});

interface Case {
  kind: 0 | 1;
  operation: number;
  control: number;
  a: Uint8Array;
  b: Uint8Array;
  memory: Uint8Array;
}

function onSilicon(cases: readonly Case[]): Uint8Array[] {
  const program = join(folder, "float-vectors");
  const source = new URL("silicon/float-vectors.c", import.meta.url).pathname;
  execFileSync("gcc", ["-O1", "-mno-red-zone", "-o", program, source]);
  const bytes = new Uint8Array(cases.length * CASE_BYTES);
  const view = new DataView(bytes.buffer);
  cases.forEach((one, i) => {
    const at = i * CASE_BYTES;
    view.setUint32(at, one.kind, true);
    view.setUint32(at + 4, one.operation, true);
    view.setUint32(at + 8, one.control, true);
    bytes.set(one.a, at + 16);
    bytes.set(one.b, at + 32);
    bytes.set(one.memory, at + 48);
  });
  writeFileSync(join(folder, "cases"), bytes);
  execFileSync(program, [join(folder, "cases"), join(folder, "results")]);
  const results = readFileSync(join(folder, "results"));
  return cases.map((_, i) => new Uint8Array(results.subarray(i * RESULT_BYTES, (i + 1) * RESULT_BYTES)));
}

const SIGNIFICANDS = [
  1n << 63n,
  (1n << 63n) + 1n,
  (1n << 64n) - 1n,
  3n << 62n,
  0n,
  1n,
  (1n << 63n) - 1n,
  (1n << 62n) + 5n,
  0xc90f_daa2_2168_c235n,
];

function extended(random: Random): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  let significand = random.next64() | (1n << 63n);
  const shape = random.below(3);
  if (shape === 0) significand = random.pick(SIGNIFICANDS);
  else if (shape === 1) significand = (significand >> 40n) << 40n;
  if (random.oneIn(4)) significand |= 1n << 63n;
  const field = random.pick([
    0,
    0,
    1,
    0x7fff,
    0x7fff,
    0x7ffe,
    random.below(0x8000),
    0x3fff - 64 + random.below(128),
    0x3fff - 8 + random.below(16),
    0x3fff - 8 + random.below(16),
    0x3fff + random.below(70),
    0x3f81 - random.below(30),
    0x3c01 - random.below(60),
  ]);
  view.setBigUint64(0, significand, true);
  view.setUint16(8, field | (random.below(2) << 15), true);
  return bytes;
}

/** F2XM1 and FYL2XP1 are undefined for most operands: those are brought below 1/4. */
function inDomain(name: string, operand: Uint8Array): Uint8Array {
  const view = new DataView(operand.buffer);
  const signExponent = view.getUint16(8, true);
  const field = signExponent & 0x7fff;
  if ((name === "f2xm1" || name === "fyl2xp1") && field > 0x3ffc && field < 0x7fff) {
    view.setUint16(8, (signExponent & 0x8000) | (0x3ffc - (field & 63)), true);
  }
  return operand;
}

function floatBits(random: Random, bits: 32 | 64): bigint {
  const fractionBits = bits === 32 ? 23n : 52n;
  const top = bits === 32 ? 255 : 2047;
  const bias = bits === 32 ? 127 : 1023;
  let fraction = random.next64() & ((1n << fractionBits) - 1n);
  const shape = random.below(3);
  if (shape === 0) fraction = random.pick([0n, 1n, (1n << fractionBits) - 1n, 1n << (fractionBits - 1n)]);
  else if (shape === 1) fraction = (fraction >> (fractionBits / 2n)) << (fractionBits / 2n);
  const field = random.pick([
    0,
    top,
    1,
    top - 1,
    random.below(top + 1),
    bias - 4 + random.below(8),
    bias - 4 + random.below(8),
    bias + random.below(70),
    bias - (bits === 32 ? 75 : 523) + random.below(20),
  ]);
  return (BigInt(random.below(2)) << BigInt(bits - 1)) | (BigInt(field) << fractionBits) | fraction;
}

function vector(random: Random, bits: 32 | 64): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < 16; at += bits / 8) {
    if (bits === 32) view.setUint32(at, Number(floatBits(random, 32)), true);
    else view.setBigUint64(at, floatBits(random, 64), true);
  }
  return bytes;
}

function memoryFor(random: Random, kind: string | undefined): Uint8Array {
  if (kind === "single") return vector(random, 32);
  if (kind === "double") return vector(random, 64);
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  if (kind === "decimal") {
    for (let i = 0; i < 9; i++) bytes[i] = (random.below(10) << 4) | random.below(10);
    if (random.oneIn(4)) bytes.fill(0, 0, 9);
    bytes[9] = random.below(2) << 7;
    return bytes;
  }
  view.setBigUint64(0, random.next64() >> BigInt(random.below(64)), true);
  if (random.oneIn(2)) view.setBigInt64(0, -view.getBigInt64(0, true), true);
  return bytes;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).reverse().toString("hex");

/** ST(0) and ST(1) after `fninit; fldt b; fldt a; fldcw`. */
function loadStack(cpu: ReturnType<typeof floatCpu>, one: Case): void {
  cpu.u8.fill(0, state.fpr, state.fpr + 128);
  cpu.u16[state.fpuStatus >> 1] = 6 << 11;
  cpu.u16[state.fpuTags >> 1] = 0x0fff;
  cpu.u16[state.fpuControl >> 1] = (one.control & 0x1f7f) | 0x40;
  cpu.u8.set(one.a.subarray(0, 10), state.fpr + 6 * 16);
  cpu.u8.set(one.b.subarray(0, 10), state.fpr + 7 * 16);
  cpu.u8.set(one.memory, OPERAND_AT);
}

/** The tag word as FNSTENV stores it. */
function tagWord(cpu: ReturnType<typeof floatCpu>): number {
  const control = cpu.u16[state.fpuControl >> 1];
  const status = cpu.u16[state.fpuStatus >> 1];
  cpu.set64(OPERAND_ADDRESS, BigInt(ENVIRONMENT_AT));
  fpuHelpers.fpuStoreEnvironment(cpu, 32, 0, 0, 0);
  cpu.u16[state.fpuControl >> 1] = control;
  cpu.u16[state.fpuStatus >> 1] = status;
  return cpu.u16[(ENVIRONMENT_AT + 8) >> 1];
}

/** Distance in units of the last place between two 80-bit numbers of equal sign; Infinity when they are not comparable. */
function ulps(a: Uint8Array, b: Uint8Array): number {
  const value = (bytes: Uint8Array): bigint => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, 10);
    return (BigInt(view.getUint16(8, true)) << 63n) + (view.getBigUint64(0, true) & ((1n << 63n) - 1n));
  };
  const difference = value(a) - value(b);
  return Number(difference < 0n ? -difference : difference);
}

describe.skipIf(missing !== undefined)(`the soft float beside this processor${missing ? ` (skipped: ${missing})` : ""}`, () => {
  it(`agrees on x87 instructions (seed ${seed})`, { timeout: 120_000 }, () => {
    const random = seededRandom(seed);
    const cases: Case[] = [];
    for (let i = 0; i < 40_000; i++) {
      const operation = random.below(X87_OPERATIONS.length);
      const unmasked = random.oneIn(4) ? random.below(64) : 0;
      const control = 0x40 | (0x3f & ~unmasked) | (random.pick([0, 2, 3, 3, 3]) << 8) | (random.below(4) << 10);
      const a = inDomain(X87_OPERATIONS[operation].name, extended(random));
      const b = random.oneIn(20) ? a : extended(random);
      const memory = memoryFor(random, X87_OPERATIONS[operation].memory);
      cases.push({ kind: 0, operation, control, a, b, memory });
    }
    const results = onSilicon(cases);
    const cpu = floatCpu(vendor);
    const failures: string[] = [];
    cases.forEach((one, i) => {
      loadStack(cpu, one);
      const { name, run } = X87_OPERATIONS[one.operation];
      const flags = run(cpu);
      const real = results[i];
      const view = new DataView(real.buffer, real.byteOffset, RESULT_BYTES);
      const top = (cpu.u16[state.fpuStatus >> 1] >> 11) & 7;
      const register = (n: number): Uint8Array => {
        const at = state.fpr + ((top + n) & 7) * 16;
        return cpu.u8.slice(at, at + 10);
      };
      const loose = TRANSCENDENTAL.includes(one.operation);
      const problem = difference() ?? ((tagWord(cpu) ^ view.getUint32(4, true)) & ~freeTags() ? "tags" : undefined);
      if (problem !== undefined) {
        const wanted = `st0 ${hex(real.subarray(16, 26))} st1 ${hex(real.subarray(32, 42))} sw ${view.getUint16(0, true).toString(16)}`;
        failures.push(
          `${name} cw ${one.control.toString(16)} a ${hex(one.a.subarray(0, 10))} b ${hex(one.b.subarray(0, 10))} m ${hex(one.memory)}: ${problem}; ` +
            `silicon ${wanted} m ${hex(real.subarray(48, 58))}, ours st0 ${hex(register(0))} st1 ${hex(register(1))} sw ${cpu.u16[state.fpuStatus >> 1].toString(16)} m ${hex(cpu.u8.subarray(OPERAND_AT, OPERAND_AT + 10))}`,
        );
      }
      /** Where the last bit is free, so is the tag of a register that differs in it: zero, denormal or normal. */
      function freeTags(): number {
        if (!loose) return 0;
        const differing = [0, 1].filter((n) => ulps(register(n), real.subarray(16 + n * 16, 26 + n * 16)) > 0);
        return differing.reduce((tags, n) => tags | (3 << (((top + n) & 7) * 2)), 0);
      }
      function difference(): string | undefined {
        // C1 tells how the last bit was rounded: where that bit is free, so is C1, and whether exact results count as inexact.
        const mask = loose ? 0xffff & ~0x230 : 0xffff;
        if ((view.getUint16(0, true) & mask) !== (cpu.u16[state.fpuStatus >> 1] & mask)) return "status";
        for (const n of [0, 1]) {
          const theirs = real.slice(16 + n * 16, 26 + n * 16);
          if (((cpu.u16[state.fpuTags >> 1] >> (((top + n) & 7) * 2)) & 3) === 3) continue;
          if (ulps(register(n), theirs) > (loose ? 2 : 0)) return `st${n}`;
        }
        if (hex(real.subarray(48, 58)) !== hex(cpu.u8.subarray(OPERAND_AT, OPERAND_AT + 10))) return "memory";
        const expected = flags === -1 ? 0xad7 & 0x8d5 : flags;
        if ((view.getUint32(8, true) & 0x8d5) !== expected) return `flags ${view.getUint32(8, true).toString(16)}`;
        return undefined;
      }
    });
    expect(failures.slice(0, 20)).toEqual([]);
    expect(failures.length).toBe(0);
  });

  it(`agrees on SSE instructions (seed ${seed})`, { timeout: 120_000 }, () => {
    const random = seededRandom(seed + 1);
    const cases: Case[] = [];
    for (let i = 0; i < 40_000; i++) {
      const operation = random.below(SSE_OPERATIONS.length);
      const { bits } = SSE_OPERATIONS[operation];
      const unmasked = random.oneIn(3) ? random.below(64) : 0;
      const modes = random.oneIn(3) ? random.pick([0x8000, 0x40, 0x8040]) : 0;
      const control = (0x1f80 & ~(unmasked << 7)) | (random.below(4) << 13) | modes;
      const a = vector(random, bits);
      const b = random.oneIn(20) ? a : vector(random, bits);
      cases.push({ kind: 1, operation, control, a, b, memory: memoryFor(random, "integer") });
    }
    const results = onSilicon(cases);
    const cpu = floatCpu(vendor);
    const failures: string[] = [];
    cases.forEach((one, i) => {
      const { name, run, result } = SSE_OPERATIONS[one.operation];
      const rax = new DataView(one.memory.buffer).getBigUint64(0, true);
      prepareSse(cpu, one.control, one.a, one.b, rax);
      let raised = false;
      let flags = 0;
      try {
        flags = run(cpu);
      } catch (error) {
        if (!(error instanceof Raised)) throw error;
        raised = true;
      }
      const real = results[i];
      const view = new DataView(real.buffer, real.byteOffset, RESULT_BYTES);
      const problem = difference();
      if (problem !== undefined) {
        failures.push(
          `${name} mxcsr ${one.control.toString(16)} a ${hex(one.a)} b ${hex(one.b)} rax ${rax.toString(16)}: ${problem}; ` +
            `silicon ${hex(real.subarray(16, 32))} ${view.getBigUint64(64, true).toString(16)} mxcsr ${view.getUint32(0, true).toString(16)}, ` +
            `ours ${hex(cpu.u8.subarray(RESULT, RESULT + 16))} mxcsr ${cpu.get32(state.mxcsr).toString(16)}`,
        );
      }
      function difference(): string | undefined {
        if (raised !== (view.getUint32(12, true) === 1)) return "trap";
        if (cpu.get32(state.mxcsr) !== view.getUint32(0, true)) return "mxcsr";
        if (raised || result === "approximate") return undefined;
        if (result === "flags") return (view.getUint32(64, true) & 0x8d5) === flags ? undefined : "flags";
        if (result === "integer") return view.getBigUint64(64, true) === cpu.get64(RESULT) ? undefined : "integer";
        return hex(real.subarray(16, 32)) === hex(cpu.u8.subarray(RESULT, RESULT + 16)) ? undefined : "result";
      }
    });
    expect(failures.slice(0, 20)).toEqual([]);
    expect(failures.length).toBe(0);
  });
});
