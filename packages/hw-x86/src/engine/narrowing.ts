/**
 * 64-bit arithmetic of which only the low 32 bits are wanted, as 32-bit arithmetic: on the host it needs neither masks nor moves,
 * since instructions on 32 bits clear the upper half.
 */
import type { Node } from "./interpreter/schedule.ts";
import { constant32 } from "./node-values.ts";

/** Makes the node of an instruction by name. */
export type MakeOperation = (name: string, args: readonly Node[], bits?: number) => Node;

/** Instructions whose low 32 bits depend on nothing but the low 32 bits of their operands. */
const SAME: Readonly<Record<string, string>> = {
  "i64.add": "i32.add",
  "i64.sub": "i32.sub",
  "i64.mul": "i32.mul",
  "i64.and": "i32.and",
  "i64.or": "i32.or",
  "i64.xor": "i32.xor",
};
/** Instructions that are worth taking apart when their result is cut to 32 bits. */
export const NARROWED: Readonly<Record<string, true>> = {
  "i64.add": true,
  "i64.sub": true,
  "i64.mul": true,
  "i64.or": true,
  "i64.shl": true,
  "i64.shr_s": true,
};
/** How deep an expression is taken apart: what is wanted in both widths is computed twice. */
const DEEPEST = 6;

/** A count by which 32 bits are shifted as 64 bits are. */
export const isBelow32 = (count: Node): boolean => (count.constant === undefined ? count.bits <= 5 : count.constant < 32n);

/** An i32 node with the low 32 bits of an i64 node. */
export function narrow(make: MakeOperation, node: Node, depth = 0): Node {
  if (node.constant !== undefined) return constant32(Number(BigInt.asIntN(32, node.constant)));
  const wrapped = (): Node => make("i32.wrap_i64", [node]);
  const a = node.args[0];
  const b = node.args[1];
  if (node.name === undefined || a === undefined) return wrapped();
  if (node.name === "i64.extend_i32_u" || node.name === "i64.extend_i32_s") return a;
  if (node.name === "i64.extend32_s") return narrow(make, a, depth);
  if (b === undefined || depth >= DEEPEST) return wrapped();
  if (node.name === "i64.and" && b.constant === 0xffff_ffffn) return narrow(make, a, depth);
  const rotation = rotated(make, node, depth);
  if (rotation !== undefined) return rotation;
  const same = SAME[node.name];
  if (same !== undefined) return make(same, [narrow(make, a, depth + 1), narrow(make, b, depth + 1)]);
  if (b.constant === undefined || !isBelow32(b)) return wrapped();
  const shift = (name: string): Node => make(name, [narrow(make, a, depth + 1), narrow(make, b)]);
  if (node.name === "i64.shl") return shift("i32.shl");
  if (node.name === "i64.shr_u" && a.bits <= 32) return shift("i32.shr_u");
  if (node.name === "i64.shr_s" && a.name === "i64.extend32_s") return shift("i32.shr_s");
  return wrapped();
}

/** A rotation by a constant of 32 bits, written as two shifts. */
function rotated(make: MakeOperation, node: Node, depth: number): Node | undefined {
  if (node.name !== "i64.or") return undefined;
  const isFirst = node.args[0]?.name === "i64.shl";
  const left = node.args[isFirst ? 0 : 1];
  const right = node.args[isFirst ? 1 : 0];
  if (left?.name !== "i64.shl" || right?.name !== "i64.shr_u") return undefined;
  const [value, up] = left.args as [Node, Node];
  const [other, down] = right.args as [Node, Node];
  if (value !== other || value.bits > 32 || up.constant === undefined || up.constant + (down.constant ?? 0n) !== 32n)
    return undefined;
  return make("i32.rotl", [narrow(make, value, depth + 1), constant32(Number(up.constant))]);
}
