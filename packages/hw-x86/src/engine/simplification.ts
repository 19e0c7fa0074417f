/** What WebAssembly operations on constants, and those that change nothing, come to. */
import type { Node } from "./interpreter/schedule.ts";

const wrap = (value: bigint): bigint => BigInt.asUintN(64, value);
const signed = (value: bigint): bigint => BigInt.asIntN(64, value);
const ALL = 0xffff_ffff_ffff_ffffn;
const truth = (value: boolean): bigint => (value ? 1n : 0n);

const BINARY: Readonly<Record<string, (a: bigint, b: bigint) => bigint>> = {
  "i64.add": (a, b) => wrap(a + b),
  "i64.sub": (a, b) => wrap(a - b),
  "i64.mul": (a, b) => wrap(a * b),
  "i64.and": (a, b) => a & b,
  "i64.or": (a, b) => a | b,
  "i64.xor": (a, b) => a ^ b,
  "i64.shl": (a, b) => wrap(a << (b & 63n)),
  "i64.shr_u": (a, b) => a >> (b & 63n),
  "i64.shr_s": (a, b) => wrap(signed(a) >> (b & 63n)),
  "i64.eq": (a, b) => truth(a === b),
  "i64.ne": (a, b) => truth(a !== b),
  "i64.lt_u": (a, b) => truth(a < b),
  "i64.lt_s": (a, b) => truth(signed(a) < signed(b)),
  "i32.and": (a, b) => a & b,
  "i32.or": (a, b) => a | b,
  "i32.xor": (a, b) => a ^ b,
};
const UNARY: Readonly<Record<string, (a: bigint) => bigint>> = {
  "i64.eqz": (a) => truth(a === 0n),
  "i32.eqz": (a) => truth(a === 0n),
  "i32.wrap_i64": (a) => BigInt.asIntN(32, a),
  "i64.extend_i32_u": (a) => BigInt.asUintN(32, a),
  "i64.extend8_s": (a) => wrap(BigInt.asIntN(8, a)),
  "i64.extend16_s": (a) => wrap(BigInt.asIntN(16, a)),
  "i64.extend32_s": (a) => wrap(BigInt.asIntN(32, a)),
};

/** The constant, or the operand, that the operation is equal to; undefined where it is neither. */
export function simplify(name: string, args: readonly Node[]): bigint | Node | undefined {
  const a = args[0];
  const b = args[1];
  const x = a?.constant;
  const y = b?.constant;
  if (a === undefined || (x === undefined && y === undefined)) return undefined;
  if (b === undefined) return x === undefined ? undefined : UNARY[name]?.(x);
  if (x !== undefined && y !== undefined) return BINARY[name]?.(x, y);
  switch (name) {
    case "i64.add":
    case "i32.add":
    case "i64.or":
    case "i64.xor":
    case "i32.or":
    case "i32.xor":
      if (y === 0n) return a;
      return x === 0n ? b : undefined;
    case "i64.sub":
    case "i32.sub":
    case "i32.shl":
    case "i32.shr_u":
    case "i32.shr_s":
    case "i32.rotl":
    case "i64.shl":
    case "i64.shr_u":
    case "i64.shr_s":
      return y === 0n ? a : undefined;
    case "i64.and": {
      if (x === 0n || y === 0n) return 0n;
      if (y !== undefined) return keeps(a, y) ? a : undefined;
      return keeps(b, x as bigint) ? b : undefined;
    }
    case "i64.lt_u":
      return x !== undefined && x >= (1n << BigInt(b.bits)) - 1n ? 0n : undefined;
    case "i32.and":
      return x === 0n || y === 0n ? 0n : undefined;
    default:
      return undefined;
  }
}

/** True when the mask has every bit that the node can have. */
function keeps(node: Node, mask: bigint): boolean {
  if (node.bits === 64) return mask === ALL;
  const all = (1n << BigInt(node.bits)) - 1n;
  return (mask & all) === all;
}
