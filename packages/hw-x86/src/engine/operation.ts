/**
 * A decoded instruction as it lies in the operation arena: OP_BYTES bytes, little-endian. The interpreter dispatches on
 * `handler`; the translator reads the same records. Registers are bank offsets into the CPU state, so byte registers, AH
 * included, need no special case. A block is a header of OP_BYTES followed by operations in order of execution.
 */
export const OP_BYTES = 32;

export const op = {
  /** u16: which generated handler: one for each (instruction, form, operand sizes, register or memory) that occurs. */
  handler: 0,
  /** u8: instruction length in bytes, 1 to 15. */
  length: 2,
  /** u8: log2 of the index scale, 0 to 3. */
  scale: 3,
  /** u16: bank offset of the first and the second register operand. */
  a: 4,
  b: 6,
  /** u16: bank offset of base and index register; `state.zero` when absent; `state.blockRip` for RIP-relative. */
  base: 8,
  index: 10,
  /** u16: bank offset of the segment slot of the memory operand. */
  segment: 12,
  /** u16: offset of the instruction from the start of its block, in bytes; RIP = blockRip + this. */
  ripOffset: 14,
  /** i32: displacement; RIP-relative ones have the offset of the next instruction added. */
  displacement: 16,
  /** u8: address size: 16, 32 or 64. u8: prefixes: bit 0 LOCK, bit 1 REP/REPE, bit 2 REPNE, bit 3 USES_STACK. u16: third register operand. */
  addressSize: 20,
  prefixes: 21,
  c: 22,
  /** i64: immediate, sign- or zero-extended as its form says; for relative jumps the offset of the target from blockRip. */
  immediate: 24,
} as const;

/** In `op.prefixes`: the instruction pushes or pops, so that not all of its accesses are to the memory operand's segment. */
export const USES_STACK = 8;

/** A power of two: see `block.entries`. */
export const ENTRIES_PER_QUESTION = 1024;
/** In `block.entries`: the engine is not asked. */
export const NEVER_ASKED = 0x8000_0000;

/** Header of a block. */
export const block = {
  /** u32: instructions in the block. */
  count: 0,
  /** u32: bank offset of its first byte. */
  physical: 4,
  /** u32: bytes of code it covers. */
  bytes: 8,
  /** u32: bank offsets of the headers of the blocks that follow it in the same page, 0 when not linked: jump taken; fall through. */
  taken: 12,
  next: 16,
  /**
   * u32: counts every entry by the interpreter; at each multiple of ENTRIES_PER_QUESTION the engine is asked whether the block is to be
   * translated (entry-counts.ts). Where there is a region, the number of the block among its entries.
   */
  entries: 20,
  /** i32: what entering the block costs of the budget: `count`, or more than any budget when the block was dropped. */
  charge: 24,
  /** u32: table index of the translated region that is entered at the block, 0 when there is none. */
  region: 28,
} as const;
