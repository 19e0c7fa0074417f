/**
 * What lies between the semantics table and both back ends. `expandTable` (expand.ts) turns each form into variants, one for
 * each operand size, register-or-memory choice and condition code that it can be encoded with; a variant's number is the
 * `handler` of its operations. `decode` (decoder.ts) reads bytes into a `DecodedOperation`.
 */
import type { Form, FormOperand, Instruction } from "../instruction.ts";

/** Where one operand of a variant is found, given an operation record. `size` in bits. */
export type OperandAccess =
  /** General register: the operation's field holds its bank offset (AH etc. are byte offsets). */
  | { kind: "gpr"; field: "a" | "b" | "c"; size: 8 | 16 | 32 | 64 }
  /** General register known from the form: AL, CL, DX, rAX. `register` 0-15. */
  | { kind: "fixedGpr"; register: number; size: 8 | 16 | 32 | 64 }
  | { kind: "memory"; size: number }
  | { kind: "immediate"; size: 8 | 16 | 32 | 64 }
  | { kind: "constant"; value: number }
  /** Relative branch target; `immediate` holds the offset from blockRip. */
  | { kind: "relative" }
  /** ptr16:z: immediate bits 0-31 offset, 32-47 selector. */
  | { kind: "farPointer" }
  /** XMM or MMX/x87 register: the field holds the bank offset of the XMM register or of R[n] (mm). `size` 256: YMM. */
  | { kind: "xmm"; field: "a" | "b" | "c" | "immediate"; size: number }
  | { kind: "mm"; field: "a" | "b" | "c"; size: number }
  /** The field holds the register's number. */
  | { kind: "segmentRegister" | "controlRegister" | "debugRegister" | "stackIndex"; field: "a" | "b" | "c" };

export interface Variant {
  /** Handler number, dense from 0 in table order. */
  readonly number: number;
  readonly instruction: Instruction;
  readonly form: Form;
  /** Operand size in bits: what `Emitter.size` says. */
  readonly size: 8 | 16 | 32 | 64;
  readonly isMemory: boolean;
  /** For +cc forms: 0 to 15. */
  readonly condition: number | undefined;
  readonly operands: readonly FormOperand[];
  readonly access: readonly OperandAccess[];
  /** For messages: "ADD r/m32, r32 (memory)". */
  readonly name: string;
}

/** Filled by `decode`; reused from call to call. Fields as in operation.ts. */
export interface DecodedOperation {
  /** Handler number of the variant. */
  handler: number;
  length: number;
  scale: number;
  a: number;
  b: number;
  c: number;
  base: number;
  index: number;
  /** Bank offset of the segment slot (segment overrides applied, SS for BP/SP based). In 64-bit mode FS and GS overrides only. */
  segment: number;
  displacement: number;
  /** True: base is state.blockRip and the displacement counts from the end of the instruction. */
  ripRelative: boolean;
  addressSize: 16 | 32 | 64;
  /** Bit 0 LOCK, 1 REP/REPE (F3), 2 REPNE (F2). */
  prefixes: number;
  /** Halves of the 64-bit immediate, extended; for relative operands the signed displacement from the end of the instruction. */
  immediateLow: number;
  immediateHigh: number;
}

/** ok; undefined: #UD (no such form, or LOCK where it may not be: the bytes are named in the log); tooLong: more than 15 bytes, #GP(0);
 *  incomplete: more bytes are needed than were available. */
export type DecodeResult = "ok" | "undefined" | "tooLong" | "incomplete";

/** `code[offset .. offset + available)`; `codeSize` 16, 32 or 64. */
export type Decode = (
  code: Uint8Array,
  offset: number,
  available: number,
  codeSize: 16 | 32 | 64,
  into: DecodedOperation,
) => DecodeResult;
