/**
 * Second-level entries as two 32-bit words: the low one has rights and the bank offset, the high one the bank. Both vendors' entries
 * have a large leaf's bit and the right to write in the same place; the rest is a format.
 */
export const TDP_WRITE = 2;
/** Leaf of a level above 1. */
export const TDP_LARGE = 1 << 7;
export const TDP_ADDRESS = 0xffff_f000;

export const BANK_SPAN = 0x1_0000_0000;
/** Level of 4 KiB leaves, and of 2 MiB leaves. */
export const LEVEL_4K = 1;
export const LEVEL_2M = 2;

export interface TdpFormat {
  readonly levels: 4 | 5;
  /** Any of these bits: the entry is there. */
  readonly present: number;
  /** An entry that links a table. */
  readonly table: number;
  /** A leaf without the right to write. */
  readonly leaf: number;
  /** Of a leaf that has been written to, where the processor sets such a flag. */
  readonly dirty: number;
  /** What the control structure takes for a tree of tables. */
  pointer(root: number, accessedDirty: boolean): bigint;
}

/** Guest frames that an entry of a level maps. */
export function framesOf(level: number): number {
  return 512 ** (level - 1);
}
