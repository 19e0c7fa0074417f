/** What is compared with silicon: the rows of each kind, the mode that they run in, and the state that they start from. */
import type { Instruction } from "../../src/engine/instruction.ts";
import { arithmetic } from "../../src/engine/semantics/arithmetic.ts";
import { bitManipulation } from "../../src/engine/semantics/bit-manipulation.ts";
import { bits } from "../../src/engine/semantics/bits.ts";
import { control } from "../../src/engine/semantics/control.ts";
import { cryptography } from "../../src/engine/semantics/crypto.ts";
import { decimal } from "../../src/engine/semantics/decimal.ts";
import { flagControl } from "../../src/engine/semantics/flag-control.ts";
import { vexEncoded } from "../../src/engine/semantics/floating-point.ts";
import { comparableExtensions } from "../../src/engine/semantics/integer-extensions.ts";
import { logic } from "../../src/engine/semantics/logic.ts";
import { moves } from "../../src/engine/semantics/moves.ts";
import { packedStrings } from "../../src/engine/semantics/packed-strings.ts";
import { shifts } from "../../src/engine/semantics/shifts.ts";
import { sseConvert } from "../../src/engine/semantics/sse-convert.ts";
import { sseFloat } from "../../src/engine/semantics/sse-float.ts";
import { sse3 } from "../../src/engine/semantics/sse3.ts";
import { sse4Float } from "../../src/engine/semantics/sse4-float.ts";
import { sse4Integer } from "../../src/engine/semantics/sse4-integer.ts";
import { ssse3 } from "../../src/engine/semantics/ssse3.ts";
import { stack } from "../../src/engine/semantics/stack.ts";
import { strings } from "../../src/engine/semantics/strings.ts";
import { vectorInteger } from "../../src/engine/semantics/vector-integer.ts";
import { vectorMoves } from "../../src/engine/semantics/vector-moves.ts";
import { x87 } from "../../src/engine/semantics/x87.ts";
import { x87Control } from "../../src/engine/semantics/x87-control.ts";
import type { Random } from "../random.ts";
import { awkwardFx, awkwardQuadword } from "./awkward-fpu-state.ts";
import { type CaseCodeSize, DATA_BYTES } from "./case-generator.ts";
import { randomFx } from "./fpu-state.ts";

export interface Group {
  readonly name: string;
  readonly rows: readonly Instruction[];
  readonly codeSize: CaseCodeSize;
  readonly fx: ((random: Random) => Uint8Array) | undefined;
  /** The instructions of a case are a loop of so many rounds, and there are fewer cases. */
  readonly rounds?: number;
  readonly needsAvx2?: true;
}

const integer = [
  arithmetic,
  logic,
  shifts,
  bits,
  moves,
  stack,
  control,
  strings,
  flagControl,
  comparableExtensions,
  bitManipulation,
].flat();
// Which bits of MXCSR exist is the model's affair
const vector = [vectorMoves, vectorInteger, sseFloat, sseConvert].flat().filter(({ mnemonic }) => mnemonic !== "LDMXCSR");
const avx = vexEncoded.filter(({ mnemonic }) => mnemonic !== "VLDMXCSR");
const later = [sse3, ssse3, sse4Integer, packedStrings, sse4Float, cryptography].flat();
const sse = vector.filter(({ requires }) => !requires?.includes("mmx"));
/**
 * Makers differ in the last bit of transcendentals and what they do outside their domains, in C1 after FCOMI, and in the
 * pointers and the order of faults of state images: float-silicon.test.ts and fxsave.test.ts test those.
 */
export const DIFFERS =
  /^(F2XM1|FYL2X|FYL2XP1|FPATAN|FPTAN|FSIN|FCOS|FSINCOS|FU?COMIP?|FN?SAVE|FN?STENV|FLDENV|FRSTOR|FXSAVE|FXRSTOR)$/;
export const stackForms = [...x87, ...x87Control].filter(({ mnemonic }) => !DIFFERS.test(mnemonic));
export const groups: readonly Group[] = [
  { name: "integer instructions in 64-bit mode", rows: integer, codeSize: 64, fx: undefined },
  { name: "integer instructions in compatibility mode", rows: [...integer, ...decimal], codeSize: 32, fx: undefined },
  { name: "integer instructions in 16-bit segments", rows: [...integer, ...decimal], codeSize: 16, fx: undefined },
  { name: "strings in 64-bit mode", rows: strings, codeSize: 64, fx: undefined },
  { name: "MMX, SSE and SSE2 in 64-bit mode", rows: vector, codeSize: 64, fx: randomFx },
  { name: "SSE and SSE2 at the edges of floating point", rows: vector, codeSize: 64, fx: awkwardFx },
  // So often that regions are made of them: what one round leaves is what the next one computes with
  { name: "SSE and SSE2 in loops", rows: sse, codeSize: 64, fx: awkwardFx, rounds: 3000 },
  { name: "MMX, SSE and SSE2 in compatibility mode", rows: vector, codeSize: 32, fx: awkwardFx },
  { name: "SSE3 to SSE4.2, AES and SHA in 64-bit mode", rows: later, codeSize: 64, fx: awkwardFx },
  { name: "SSE3 to SSE4.2, AES and SHA in loops", rows: later, codeSize: 64, fx: awkwardFx, rounds: 300 },
  { name: "SSE3 to SSE4.2, AES and SHA in compatibility mode", rows: later, codeSize: 32, fx: randomFx },
  { name: "AVX, AVX2, FMA and F16C in 64-bit mode", rows: avx, codeSize: 64, fx: randomFx, needsAvx2: true },
  { name: "AVX, AVX2, FMA and F16C at the edges of floating point", rows: avx, codeSize: 64, fx: awkwardFx, needsAvx2: true },
  { name: "AVX, AVX2, FMA and F16C in loops", rows: avx, codeSize: 64, fx: awkwardFx, rounds: 300, needsAvx2: true },
  { name: "AVX, AVX2, FMA and F16C in compatibility mode", rows: avx, codeSize: 32, fx: awkwardFx, needsAvx2: true },
  { name: "x87 in 64-bit mode", rows: stackForms, codeSize: 64, fx: awkwardFx },
  { name: "x87 in compatibility mode", rows: stackForms, codeSize: 32, fx: awkwardFx },
];

/** In bulk only (`pnpm verify:hw`): that these have the same rows in 64-bit mode says most of them already. */
export const groupsInBulk: readonly Group[] = [
  ...groups,
  { name: "MMX, SSE to SSE4.2, AES and SHA in 16-bit segments", rows: [...vector, ...later], codeSize: 16, fx: awkwardFx },
  { name: "AVX, AVX2, FMA and F16C in 16-bit segments", rows: avx, codeSize: 16, fx: awkwardFx, needsAvx2: true },
  { name: "x87 in 16-bit segments", rows: stackForms, codeSize: 16, fx: awkwardFx },
];

/** Which bits of MXCSR exist is the model's affair. */
export const OWN_TESTS = /^V?LDMXCSR$/;

/** Contents of the data pages for cases of a group. */
export function initialData(random: Random, { fx }: Group): Uint8Array {
  const initial = Uint8Array.from({ length: DATA_BYTES }, () => random.next());
  if (fx !== awkwardFx) return initial;
  const words = new BigUint64Array(initial.buffer);
  words.forEach((_, i) => {
    if (!random.oneIn(3)) words[i] = awkwardQuadword(random, random.oneIn(2));
  });
  return initial;
}
