/**
 * The register file of a logical CPU as the engine sees it: one block of memory at a fixed place in the bank that the CPU works
 * on, so that generated WebAssembly reaches every register with a constant address. When a CPU turns to another bank the block
 * is copied there (`CpuState.copyTo`). What lies here is not reachable by guests: no second-level page table maps it.
 *
 * Bank layout (bytes):
 *   0x0000_0000  never mapped, so that a null host offset is always a mistake
 *   0x0000_1000  this block (CPU_STATE)
 *   0x0000_4000  scratch for accesses that cross a page (SCRATCH)
 *   0x0001_0000  data TLB (TLB)
 *   0x0003_0000  code TLB (CODE_TLB)
 *   0x0004_0000  blocks by RIP (BLOCK_TABLE)
 *   0x000c_0000  blocks by physical address (PHYSICAL_TABLE); see block-tables.ts for all three
 *   0x0010_0000  decoded operations (OP_ARENA), OP_ARENA_BYTES long
 *   BANK_FIRST_FREE  first byte that the kernel may hand out
 */
export const CPU_STATE = 0x1000;
export const CPU_STATE_BYTES = 0x2000;
export const SCRATCH = 0x4000;
export const SCRATCH_BYTES = 0x1000;
export const TLB = 0x1_0000;
export const CODE_TLB = 0x3_0000;
export const BLOCK_TABLE = 0x4_0000;
export const PHYSICAL_TABLE = 0xc_0000;
export const OP_ARENA = 0x10_0000;
export const OP_ARENA_BYTES = 0x140_0000;
export const BANK_FIRST_FREE = OP_ARENA + OP_ARENA_BYTES;

/** Register numbers as instructions encode them. */
export const RAX = 0,
  RCX = 1,
  RDX = 2,
  RBX = 3,
  RSP = 4,
  RBP = 5,
  RSI = 6,
  RDI = 7;
/** Segment register numbers as instructions encode them; LDTR and TR follow as slots of their own. */
export const ES = 0,
  CS = 1,
  SS = 2,
  DS = 3,
  FS = 4,
  GS = 5,
  LDTR = 6,
  TR = 7;

/** Bytes from one segment slot to the next. */
export const SEGMENT_STRIDE = 64;
/**
 * Fields inside a segment slot. `base` and `limit` are architectural. `readEnd` and `writeEnd` are derived by
 * `updateSegments`: an access of n bytes at offset o needs no further check when o + n - 1 < end as unsigned 64-bit numbers.
 * An end is one past the limit; in 64-bit mode it is 2^64-1; a null, expand-down, execute-only (read) or read-only (write) segment has 0 and
 * takes the slow path, which decides.
 */
export const SEG_BASE = 0,
  SEG_LIMIT = 8,
  SEG_READ_END = 16,
  SEG_WRITE_END = 24,
  SEG_ACCESS = 32,
  SEG_SELECTOR = 36,
  /** Base that address computation adds: 0 for ES, CS, SS, DS in 64-bit mode, `base` otherwise. */
  SEG_EFFECTIVE_BASE = 40;
/** SEG_ACCESS holds access rights in the VMX format: bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable. */

/** A place: linear address of its page, 8 bytes; addend as in the TLB, 4 bytes. */
export const PLACE_BYTES = 16;
export const MOST_PLACES = 8;

let next = CPU_STATE;
function at(bytes: number, align = bytes): number {
  next = Math.ceil(next / align) * align;
  const here = next;
  next += bytes;
  return here;
}

/**
 * Absolute bank offsets of every field, in bytes. The comment gives the width where the name does not. Order is private to
 * this file: use the names.
 */
export const state = {
  /** 16 x 8 bytes. Byte registers AH, CH, DH, BH are the second byte of registers 0 to 3. */
  gpr: at(128, 64),
  /** 8 bytes, always zero: stands for an absent base or index register. */
  zero: at(8),
  /** 8 bytes: instruction pointer of the next instruction; exact only outside `run` and where `syncRip` made it so. */
  rip: at(8),
  /** 8 bytes each: the arithmetic flags in lazy form (see flags.ts). */
  flagResult: at(8),
  flagCarry: at(8),
  /** 4 bytes. */
  flagAux: at(4),
  /** 4 bytes: RFLAGS without CF PF AF ZF SF OF; bit 1 always set. */
  systemFlags: at(4),
  /** 8 bytes: linear instruction pointer offset (RIP, not including CS base) of the start of the running block. */
  blockRip: at(8),
  /** 4 bytes: bank offset of the header of the running block. */
  blockStart: at(4),
  /** 4 bytes, signed: instructions left before `run` must return. */
  budget: at(4),
  /** 8 bytes: tag that data TLB entries must carry; changes with address space, privilege and flushes. */
  tlbTag: at(8),
  /** 4 bytes: tag that block table entries must carry. */
  blockTag: at(4),
  /** 4 bytes: current privilege level, 0 to 3. */
  cpl: at(4),
  /** 4 bytes: 16, 32 or 64: default code size of CS (64: 64-bit mode). */
  codeSize: at(4),
  /** 4 bytes: 16, 32 or 64: width of the stack pointer. */
  stackSize: at(4),
  /** 8 bytes: mask for the stack pointer: 0xffff, 0xffff_ffff or all ones. */
  stackMask: at(8),
  /** 4 bytes: bit 0 blocking by STI, bit 1 blocking by MOV SS, bit 3 blocking by NMI (VMX interruptibility state). */
  interruptibility: at(4),
  /** 4 bytes: 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI (VMX activity state). */
  activity: at(4),
  cr0: at(8),
  cr2: at(8),
  cr3: at(8),
  cr4: at(8),
  cr8: at(8),
  xcr0: at(8),
  /** 8 bytes: IA32_XSS. */
  xss: at(8),
  /** 8 bytes, of which 4 are the register: rights of user pages by protection key. */
  pkru: at(8),
  /** 8 x 8 bytes; 4 and 5 are unused. */
  dr: at(64, 8),
  efer: at(8),
  star: at(8),
  lstar: at(8),
  cstar: at(8),
  fmask: at(8),
  kernelGsBase: at(8),
  tscAux: at(8),
  sysenterCs: at(8),
  sysenterEsp: at(8),
  sysenterEip: at(8),
  pat: at(8),
  apicBase: at(8),
  miscEnable: at(8),
  /** 4 x 8 bytes: the PDPTE registers of PAE paging; VM entry loads them from the VMCS, MOV to CR3 from memory. */
  pdpte: at(32, 8),
  gdtrBase: at(8),
  idtrBase: at(8),
  gdtrLimit: at(4),
  idtrLimit: at(4),
  /** 8 slots of SEGMENT_STRIDE bytes: ES CS SS DS FS GS LDTR TR. */
  segments: at(8 * SEGMENT_STRIDE, 64),
  /** A slot with base 0 and tops of 2^64-1, for LEA-like addressing and flat accesses. */
  flatSegment: at(SEGMENT_STRIDE, 64),
  /** 16 x 16 bytes. */
  xmm: at(256, 64),
  /** 16 x 16 bytes: upper halves of YMM. */
  ymmHigh: at(256, 64),
  /** 4 bytes. */
  mxcsr: at(4),
  mxcsrMask: at(4),
  /** 8 x 16 bytes: physical x87 registers R0 to R7 (not relative to TOP), each 10 bytes: significand 8, sign and exponent 2. */
  fpr: at(128, 16),
  /** 2 bytes each. fpuTags is the full tag word, 2 bits for each physical register; TOP lives in fpuStatus. */
  fpuControl: at(2),
  fpuStatus: at(2),
  fpuTags: at(2),
  fpuOpcode: at(2),
  /** 8 bytes each; selectors 2 bytes. */
  fpuIp: at(8),
  fpuDp: at(8),
  fpuCs: at(2),
  fpuDs: at(2),
  /** 8 x 8 bytes: 64-bit arguments of, and results from, helpers, which take and return 32-bit integers only. */
  helper: at(64, 16),
  /** 32 bytes: the value of a store that takes the slow path. */
  storeValue: at(32, 16),
  /** 4 bytes: header of the block at `rip` where a region was left; 0 when it is to be looked for. */
  found: at(4),
  /** 8 bytes: written where a probe of the TLB missed, read nowhere, see `emitTagUse`. */
  missedTag: at(8),
  /** 4 bytes: number of a helper's pending fault, see exceptions.ts. */
  faultVector: at(4),
  faultError: at(4),
  faultHasError: at(4),
  /** 4 bytes: bank offset of the record of the running operation; written before every call out of generated code. */
  operation: at(4),
  /** 8 bytes: where execution goes on after a helper that ends its block. */
  nextRip: at(8),
  /** 8 bytes: what is added to RIP to find its block: effective base of CS, and bit 40 where segments are flat outside 64-bit mode. */
  lookupBase: at(8),
  /** 8 bytes: mask of effective addresses in blocks decoded for flat segments: all ones in 64-bit mode, else 32 bits. */
  flatMask: at(8),
  /** MOST_PLACES x PLACE_BYTES: what the running translated region remembers of translations, see translator/place-cache.ts. */
  places: at(MOST_PLACES * PLACE_BYTES, 16),
  /** 8 bytes, always 2^32: index register of RIP-relative operands whose displacement was wrapped to 32 bits. */
  fourGib: at(8),
  /** 4 bytes: what this vendor's processors do, a bit for each difference in vendor-behaviour.ts. */
  vendorBehaviour: at(4),
  /** 4 bytes: not zero where PUSHF exits. */
  pushfIntercepted: at(4),
  /** 8 bytes: IA32_DEBUGCTL. */
  debugctl: at(8),
  /** 8 bytes each: the last branch record, and the one before the last interrupt or exception. */
  branchFrom: at(8, 8),
  branchTo: at(8),
  exceptionFrom: at(8),
  exceptionTo: at(8),
  /** 4 bytes: not zero while a helper computes the lower of two halves, whose exceptions wait for the upper one's. */
  isLowerHalf: at(4),
  /** 4 bytes: MXCSR flags of a lower half, and bit 31 where there are any to settle. */
  pendingFlags: at(4),
  /** 4 bytes: not zero where each iteration of a repeated string instruction is looked at. */
  iteratesSingly: at(4),
  /** 8 bytes: iterations of repeated string instructions that were not their last, each of which cost an instruction of the budget. */
  furtherIterations: at(8),
} as const;

if (next > CPU_STATE + CPU_STATE_BYTES) throw new Error("CPU state does not fit its block");

/** Bank offset of general register `index`. */
export const gprOffset = (index: number): number => state.gpr + index * 8;
/** Bank offset of the slot of segment register `index` (ES to TR). */
export const segmentOffset = (index: number): number => state.segments + index * SEGMENT_STRIDE;

/**
 * Data TLB: TLB_ENTRIES direct-mapped entries of TLB_ENTRY_BYTES, indexed by linear page number modulo TLB_ENTRIES.
 *   +0  8 bytes  tag for reads:  linear page address | tlbTag, or all ones when reads need the slow path
 *   +8  8 bytes  tag for writes: the same; all ones for pages that are clean, read-only, or hold decoded code
 *   +16 4 bytes  addend: bank offset = low 32 bits of the linear address + addend
 * An access of n bytes at a hits when ((a + n - 1) & ~0xfff) | tlbTag equals the tag of the entry of a's page, so an access
 * that crosses a page misses. tlbTag uses bits 0-11 only.
 */
export const TLB_ENTRIES = 4096;
export const TLB_ENTRY_BYTES = 32;
/** Number of the 32-bit word of the bank at which the entry begins for the page of a linear address, of which this is the lower half. */
export const tlbEntryWord = (low: number): number => (TLB + ((low >>> 12) % TLB_ENTRIES) * TLB_ENTRY_BYTES) >>> 2;
export const TLB_READ_TAG = 0,
  TLB_WRITE_TAG = 8,
  TLB_ADDEND = 16;
