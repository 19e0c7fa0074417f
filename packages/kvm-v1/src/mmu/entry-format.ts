/** What the MMU needs to know of a vendor's second-level entries: each is two 32-bit words, the low one has rights and the bank offset, the high one the bank. */
export interface EntryFormat {
  readonly levels: 4 | 5;
  /** Any of these bits: the entry maps something. */
  readonly present: number;
  /** Bits of an entry that links a table. */
  readonly table: number;
  /** Bits of an entry that maps memory for reading and fetching. */
  readonly leaf: number;
  /** The right to write. */
  readonly write: number;
  /** What the control structure takes for a tree of tables. */
  pointer(root: number, accessedDirty: boolean): bigint;
}

/** Bits 31:12 of the low word. */
export const ENTRY_ADDRESS = 0xffff_f000;
