/** Values as expression nodes: what handles of emitter.ts are, constants, and how memory is read and written by size. */
import type { Bool, Int, Size, Value, Vec } from "./emitter.ts";
import { makeNode, NO_ARGUMENTS, NOTHING, type Node } from "./interpreter/schedule.ts";

// Handles are nodes; the types of emitter.ts keep rows from mixing them up.
export const asInt = (node: Node): Int => node as unknown as Int;
export const asBool = (node: Node): Bool => node as unknown as Bool;
export const asVec = (node: Node): Vec => node as unknown as Vec;
export const nodeOf = (value: Value): Node => value as unknown as Node;

export const LOAD64: Readonly<Record<Size, string>> = {
  8: "i64.load8_u",
  16: "i64.load16_u",
  32: "i64.load32_u",
  64: "i64.load",
};
export const STORE64: Readonly<Record<Size, string>> = {
  8: "i64.store8",
  16: "i64.store16",
  32: "i64.store32",
  64: "i64.store",
};
const MASKS: Readonly<Record<Size, bigint>> = { 8: 0xffn, 16: 0xffffn, 32: 0xffff_ffffn, 64: 0xffff_ffff_ffff_ffffn };
export const maskOf = (size: Size): bigint => MASKS[size];

const i64Constant = (value: bigint, bits: number): Node =>
  makeNode("i64", NO_ARGUMENTS, (c) => c.i64(value), NOTHING, bits, value);
const i32Constant = (value: number): Node => makeNode("i32", NO_ARGUMENTS, (c) => c.i32(value), NOTHING, 64, BigInt(value));
/** Nodes of constants have no place where they are computed, so that one serves all: of those that nearly everything uses. */
const SMALL_I64 = Array.from({ length: 256 }, (_, value) => i64Constant(BigInt(value), bitLength(BigInt(value))));
const SMALL_I32 = Array.from({ length: 256 }, (_, value) => i32Constant(value));
const MASK_I64 = new Map([16, 32, 64].map((size) => [MASKS[size as Size], i64Constant(MASKS[size as Size], size)]));

/** Bits up to the highest that is set, of an unsigned number of 64 bits; 1 for zero. */
export function bitLength(value: bigint): number {
  const high = Number(value >> 32n);
  return high !== 0 ? 64 - Math.clz32(high) : Math.max(1, 32 - Math.clz32(Number(value & 0xffff_ffffn)));
}

export function integerSize(bits: number): Size {
  if (bits === 8 || bits === 16 || bits === 32 || bits === 64) return bits;
  throw new Error(`no integer of ${bits} bits`);
}

/** An i64 node of that number, wrapped. */
export function constant64(value: bigint): Node {
  if (value >= 0n && value < 256n) return SMALL_I64[Number(value)] as Node;
  const wrapped = BigInt.asUintN(64, value);
  return MASK_I64.get(wrapped) ?? i64Constant(wrapped, bitLength(wrapped));
}
/** The same of a whole number, most of which are small. */
export function constantOf(value: number): Node {
  return SMALL_I64[value] ?? constant64(BigInt(value));
}
export function constant32(value: number): Node {
  return SMALL_I32[value] ?? i32Constant(value);
}
