/** The operations of silicon/float-vectors.c by number, as calls of the helpers that rows make for them. */
import type { Cpu } from "../src/engine/cpu.ts";
import { state } from "../src/engine/cpu-state.ts";
import { fpuHelpers } from "../src/engine/fpu/helpers.ts";
import { DESTINATION, RESULT, SOURCE_VECTOR, SSE_OPERATION } from "../src/engine/fpu/sse.ts";
import { OPERAND_ADDRESS, VALUE } from "../src/engine/fpu/x87-state.ts";
import { OPERAND_AT } from "./fpu-state.ts";

type Run = (cpu: Cpu) => number;

function call(cpu: Cpu, name: string, ...args: number[]): number {
  const helper = fpuHelpers[name];
  if (helper === undefined) throw new Error(`no helper ${name}`);
  return helper(cpu, args[0] ?? 0, args[1] ?? 0, args[2] ?? 0, args[3] ?? 0) ?? 0;
}
const plain =
  (name: string, ...args: number[]): Run =>
  (cpu) => {
    call(cpu, name, ...args);
    return -1;
  };
/** The helper's result are flags. */
const flags =
  (name: string, ...args: number[]): Run =>
  (cpu) =>
    call(cpu, name, ...args);
const withMemory =
  (bytes: number, name: string, ...args: number[]): Run =>
  (cpu) => {
    cpu.set64(OPERAND_ADDRESS, BigInt(OPERAND_AT));
    const value = cpu.view.getBigUint64(OPERAND_AT, true);
    cpu.set64(VALUE, bytes === 10 ? 0n : BigInt.asUintN(bytes * 8, value));
    call(cpu, name, ...args);
    return -1;
  };
const store =
  (bytes: number, pops: number, name: string): Run =>
  (cpu) => {
    cpu.set64(OPERAND_ADDRESS, BigInt(OPERAND_AT));
    if (call(cpu, name, bytes * 8) === 0) return -1;
    cpu.u8.copyWithin(OPERAND_AT, VALUE, VALUE + bytes);
    call(cpu, "fpuStored", pops);
    return -1;
  };

const A = "fpuArithmetic";
const C = "fpuCompare";
export const X87_OPERATIONS: readonly { name: string; run: Run; memory?: "single" | "double" | "integer" | "decimal" }[] = [
  { name: "fadd", run: plain(A, 0, 0, 1, 0) },
  { name: "fmul", run: plain(A, 1, 0, 1, 0) },
  { name: "fsub", run: plain(A, 4, 0, 1, 0) },
  { name: "fsubr", run: plain(A, 5, 0, 1, 0) },
  { name: "fdiv", run: plain(A, 6, 0, 1, 0) },
  { name: "fdivr", run: plain(A, 7, 0, 1, 0) },
  { name: "faddp", run: plain(A, 0, 0, 1, 2) },
  { name: "de e9", run: plain(A, 4, 0, 1, 2) },
  { name: "de e1", run: plain(A, 5, 0, 1, 2) },
  { name: "de f9", run: plain(A, 6, 0, 1, 2) },
  { name: "de f1", run: plain(A, 7, 0, 1, 2) },
  { name: "fsqrt", run: plain("fpuSquareRoot") },
  { name: "frndint", run: plain("fpuRoundToInteger") },
  { name: "fprem", run: plain("fpuRemainder", 0) },
  { name: "fprem1", run: plain("fpuRemainder", 1) },
  { name: "fscale", run: plain("fpuScale") },
  { name: "fxtract", run: plain("fpuExtract") },
  { name: "fxam", run: plain("fpuExamine") },
  { name: "ftst", run: plain("fpuTest") },
  { name: "fcom", run: plain(C, 0, 1, 0, 0) },
  { name: "fucom", run: plain(C, 0, 1, 0, 1) },
  { name: "fcompp", run: plain(C, 0, 1, 2, 0) },
  { name: "fucompp", run: plain(C, 0, 1, 2, 1) },
  { name: "fcomi", run: flags("fpuCompareFlags", 1, 0, 0) },
  { name: "fucomi", run: flags("fpuCompareFlags", 1, 0, 1) },
  { name: "fchs", run: plain("fpuChangeSign") },
  { name: "fabs", run: plain("fpuAbsolute") },
  { name: "fxch", run: plain("fpuExchange", 1) },
  { name: "f2xm1", run: plain("fpuExponential") },
  { name: "fyl2x", run: plain("fpuLogarithm") },
  { name: "fyl2xp1", run: plain("fpuLogarithmOnePlus") },
  { name: "fpatan", run: plain("fpuArctangent") },
  { name: "fptan", run: plain("fpuTangent") },
  { name: "fsin", run: plain("fpuSine") },
  { name: "fcos", run: plain("fpuCosine") },
  { name: "fsincos", run: plain("fpuSineCosine") },
  { name: "fld m32", run: withMemory(4, "fpuLoadSingle"), memory: "single" },
  { name: "fld m64", run: withMemory(8, "fpuLoadDouble"), memory: "double" },
  { name: "fild m32", run: withMemory(4, "fpuLoadInteger", 4), memory: "integer" },
  { name: "fild m16", run: withMemory(2, "fpuLoadInteger", 3), memory: "integer" },
  { name: "fild m64", run: withMemory(8, "fpuLoadInteger", 5), memory: "integer" },
  { name: "fbld", run: withMemory(10, "fpuLoadDecimal"), memory: "decimal" },
  { name: "fst m32", run: store(4, 0, "fpuStoreSingle") },
  { name: "fst m64", run: store(8, 0, "fpuStoreDouble") },
  { name: "fist m32", run: store(4, 0, "fpuStoreInteger") },
  { name: "fist m16", run: store(2, 0, "fpuStoreInteger") },
  { name: "fistp m64", run: store(8, 1, "fpuStoreInteger") },
  { name: "fbstp", run: withMemory(10, "fpuStoreDecimal") },
  { name: "fadd m32", run: withMemory(4, A, 0, 1, 0, 0), memory: "single" },
  { name: "fmul m64", run: withMemory(8, A, 1, 2, 0, 0), memory: "double" },
  { name: "fidiv m32", run: withMemory(4, A, 6, 4, 0, 0), memory: "integer" },
  { name: "fisub m16", run: withMemory(2, A, 4, 3, 0, 0), memory: "integer" },
  { name: "fcomp m32", run: withMemory(4, C, 1, 0, 1, 0), memory: "single" },
  ...[0, 1, 2, 3, 4, 5, 6].map((n) => ({ name: `constant ${n}`, run: plain("fpuLoadConstant", n) })),
  { name: "fld st1", run: plain("fpuLoadRegister", 1) },
  { name: "fst st3", run: plain("fpuStoreRegister", 3, 0) },
  { name: "fcmove", run: plain("fpuMove", 1, 1) },
  { name: "ffree", run: plain("fpuFree", 1, 0) },
  { name: "fincstp", run: plain("fpuTurnStack", 1) },
  { name: "fdecstp", run: plain("fpuTurnStack", 7) },
  { name: "fstp m32", run: store(4, 1, "fpuStoreSingle") },
  { name: "fstp m80", run: withMemory(10, "fpuStoreExtended") },
  { name: "fcomip", run: flags("fpuCompareFlags", 1, 1, 0) },
  { name: "fadd st4", run: plain(A, 0, 0, 4, 0) },
  { name: "fxch st4", run: plain("fpuExchange", 4) },
  { name: "fst st1", run: plain("fpuStoreRegister", 1, 0) },
  { name: "fld st5", run: plain("fpuLoadRegister", 5) },
  { name: "ficom m32", run: withMemory(4, C, 4, 0, 0, 0), memory: "integer" },
  { name: "fsubr m32", run: withMemory(4, A, 5, 1, 0, 0), memory: "single" },
  { name: "fdivr m64", run: withMemory(8, A, 7, 2, 0, 0), memory: "double" },
];
/** Numbers of the operations whose last bit may differ from silicon's. */
export const TRANSCENDENTAL = [28, 29, 30, 31, 32, 33, 34, 35];

const S = SSE_OPERATION;
const compute = (name: string, operation: number, bits: 32 | 64, lanes: number, predicate = 0) => ({
  name,
  bits,
  run: plain("sseCompute", operation, bits, lanes, predicate),
  result: "vector" as const,
});
type Result = "vector" | "integer" | "flags" | "approximate";
export interface SseOperation {
  readonly name: string;
  readonly bits: 32 | 64;
  readonly run: Run;
  readonly result: Result;
}
const lowOnly =
  (run: Run): Run =>
  (cpu) => {
    run(cpu);
    cpu.set64(RESULT + 8, 0n);
    return -1;
  };
const fromRax =
  (bits: number, integerBits: number): Run =>
  (cpu) => {
    cpu.set64(SOURCE_VECTOR, cpu.reg(0));
    return plain("sseFromInteger", bits, 1, integerBits)(cpu);
  };
export const SSE_OPERATIONS: readonly SseOperation[] = [
  compute("addps", S.add, 32, 4),
  compute("addss", S.add, 32, 1),
  compute("addpd", S.add, 64, 2),
  compute("addsd", S.add, 64, 1),
  compute("subps", S.subtract, 32, 4),
  compute("subsd", S.subtract, 64, 1),
  compute("mulps", S.multiply, 32, 4),
  compute("mulpd", S.multiply, 64, 2),
  compute("mulsd", S.multiply, 64, 1),
  compute("divps", S.divide, 32, 4),
  compute("divpd", S.divide, 64, 2),
  compute("divss", S.divide, 32, 1),
  compute("minps", S.minimum, 32, 4),
  compute("minsd", S.minimum, 64, 1),
  compute("maxpd", S.maximum, 64, 2),
  compute("maxss", S.maximum, 32, 1),
  compute("sqrtps", S.squareRoot, 32, 4),
  compute("sqrtpd", S.squareRoot, 64, 2),
  compute("sqrtsd", S.squareRoot, 64, 1),
  compute("cmpeqps", S.compare, 32, 4, 0),
  compute("cmpltps", S.compare, 32, 4, 1),
  compute("cmplepd", S.compare, 64, 2, 2),
  compute("cmpunordsd", S.compare, 64, 1, 3),
  compute("cmpneqps", S.compare, 32, 4, 4),
  compute("cmpnltsd", S.compare, 64, 1, 5),
  compute("cmpnleps", S.compare, 32, 4, 6),
  compute("cmpordpd", S.compare, 64, 2, 7),
  { name: "cvtps2pd", bits: 32, run: plain("sseConvertFloat", 32, 2), result: "vector" },
  { name: "cvtpd2ps", bits: 64, run: lowOnly(plain("sseConvertFloat", 64, 2)), result: "vector" },
  { name: "cvtss2sd", bits: 32, run: plain("sseConvertFloat", 32, 1), result: "vector" },
  { name: "cvtsd2ss", bits: 64, run: plain("sseConvertFloat", 64, 1), result: "vector" },
  { name: "cvtps2dq", bits: 32, run: plain("sseToInteger", 32, 4, 32, 0), result: "vector" },
  { name: "cvttps2dq", bits: 32, run: plain("sseToInteger", 32, 4, 32, 1), result: "vector" },
  { name: "cvtpd2dq", bits: 64, run: plain("sseToInteger", 64, 2, 32, 0), result: "vector" },
  { name: "cvttpd2dq", bits: 64, run: plain("sseToInteger", 64, 2, 32, 1), result: "vector" },
  { name: "cvtdq2ps", bits: 32, run: plain("sseFromInteger", 32, 4, 32), result: "vector" },
  { name: "cvtsd2si r64", bits: 64, run: plain("sseToInteger", 64, 1, 64, 0), result: "integer" },
  { name: "cvttsd2si r64", bits: 64, run: plain("sseToInteger", 64, 1, 64, 1), result: "integer" },
  { name: "cvtss2si r32", bits: 32, run: plain("sseToInteger", 32, 1, 32, 0), result: "integer" },
  { name: "cvttss2si r64", bits: 32, run: plain("sseToInteger", 32, 1, 64, 1), result: "integer" },
  { name: "cvtsi2sd r64", bits: 64, run: fromRax(64, 64), result: "vector" },
  { name: "cvtsi2ss r64", bits: 32, run: fromRax(32, 64), result: "vector" },
  { name: "cvtsi2ss r32", bits: 32, run: fromRax(32, 32), result: "vector" },
  { name: "ucomisd", bits: 64, run: flags("sseCompareFlags", 64, 0), result: "flags" },
  { name: "comiss", bits: 32, run: flags("sseCompareFlags", 32, 1), result: "flags" },
  { name: "rcpps", bits: 32, run: plain("sseApproximate", 0, 4), result: "approximate" },
  { name: "rsqrtps", bits: 32, run: plain("sseApproximate", 1, 4), result: "approximate" },
  { name: "cvttsd2si r32", bits: 64, run: plain("sseToInteger", 64, 1, 32, 1), result: "integer" },
];

export function prepareSse(cpu: Cpu, mxcsr: number, a: Uint8Array, b: Uint8Array, rax: bigint): void {
  cpu.set32(state.mxcsr, mxcsr);
  cpu.u8.set(a, DESTINATION);
  cpu.u8.set(b, SOURCE_VECTOR);
  cpu.set64(state.gpr, rax);
}
