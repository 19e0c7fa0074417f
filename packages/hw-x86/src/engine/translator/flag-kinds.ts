/**
 * Flags in translated regions. What the last operation was is a number in a local, its operands and result are in three more, and
 * flags are computed from them where they are read or the region is left.
 *   bits 0-1   log2 of the operand size in bytes
 *   bits 2-4   one of FlagSource
 *   bit 5      a carry or borrow went in
 *   bit 8, 9   CF, OF are in locals of their own
 * 0 means: the words in the state block, as flags.ts describes them, are right.
 */
import type { Code } from "../wasm/code.ts";

export const FlagSource = {
  /** The words in the state block. */
  words: 0,
  add: 1,
  subtract: 2,
  /** CF, OF and AF clear, the rest from the result. */
  result: 3,
  /** CF in its own local. */
  increment: 4,
  decrement: 5,
  /** The first operand has all six in their places in RFLAGS. */
  rflags: 6,
} as const;

export const CARRY_IN = 0x20;
export const OWN_CARRY = 0x100;
export const OWN_OVERFLOW = 0x200;

export const sourceOf = (kind: number): number => (kind >>> 2) & 7;
/** What `sourceOf` reads, where it lies in a kind. */
export const SOURCE_BITS = 7 << 2;
/** Pushes the number of bits above the operand, as i64. `kind`: a local. */
export function emitBitsAbove(c: Code, kind: number): Code {
  return c.i64(64n).i64(8n).get(kind).i32(3).op("i32.and").op("i64.extend_i32_u").op("i64.shl").op("i64.sub");
}
/** Operand size in bits. */
export const sizeOfKind = (kind: number): 8 | 16 | 32 | 64 => (8 << (kind & 3)) as 8 | 16 | 32 | 64;
export function kindOf(source: number, size: 8 | 16 | 32 | 64): number {
  return (source << 2) | (size === 8 ? 0 : size === 16 ? 1 : size === 32 ? 2 : 3);
}
