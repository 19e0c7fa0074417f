/** Handlers that belong to no instruction, with the numbers they have in every interpreter. */
import { OP_BYTES, op } from "../operation.ts";

export const Synthetic = {
  /** End of a block's straight run: goes on at the record's RIP through the block's `next` link. */
  end: 0,
  /** A record whose place was taken: the rest of the block is given back and RIP looked up anew. */
  cut: 1,
  /** Bytes that are no instruction. */
  undefinedInstruction: 2,
  /** An instruction of more than 15 bytes: #GP(0). */
  tooLong: 3,
} as const;
export const SYNTHETIC_COUNT = 4;

/** The operation that would run next gives up its place: the next instruction is looked up anew. */
export function cutAfter(u16: Uint16Array, operation: number): void {
  u16[(operation + OP_BYTES + op.handler) >>> 1] = Synthetic.cut;
}
