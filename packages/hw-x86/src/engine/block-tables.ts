/**
 * How generated code finds the block at an RIP, in tables of the bank. The first knows blocks by RIP; where it misses in 64-bit mode, a
 * code TLB leads to the physical page, and the second table knows blocks by physical address, so that code is found again without the
 * engine after its address space was switched away and back. What no table knows, `Blocks.find` looks up and enters.
 *
 * A page's entry in the code TLB is made when the engine has compared the page with what was decoded from it (code-pages.ts); entries
 * by RIP and of the code TLB hold as long as `state.blockTag`. A dropped block stays in the tables: its charge covers no budget.
 */
import type { Cpu } from "./cpu.ts";
import { BLOCK_TABLE, CODE_TLB, PHYSICAL_TABLE, state } from "./cpu-state.ts";
import { emitTagUse } from "./interpreter/memory-code.ts";
import { block } from "./operation.ts";
import type { Code } from "./wasm/code.ts";

/** By RIP: +0 u64 RIP + lookupBase, +8 u32 blockTag, +12 u32 header. */
const BY_RIP_LOG2 = 15;
const BY_RIP_BYTES = 16;
/** Code TLB: +0 u64 linear page, +8 u32 blockTag, +12 u32 bank offset of the page. */
const CODE_TLB_LOG2 = 12;
const CODE_TLB_ENTRY_BYTES = 16;
/** By bank offset, 64-bit code only: +0 u32 bank offset, +4 u32 header. */
const PHYSICAL_LOG2 = 15;
const PHYSICAL_BYTES = 8;

const RIP = state.rip >>> 2;
const LOOKUP_BASE = state.lookupBase >>> 2;
const BLOCK_TAG = state.blockTag >>> 2;

/** Halves of the key of `state.rip`, and its entry by RIP. Set by `locateRip`. */
let keyLow = 0;
let keyHigh = 0;
function locateRip(u32: Uint32Array): number {
  keyLow = (u32[RIP] + u32[LOOKUP_BASE]) >>> 0;
  keyHigh = (u32[RIP + 1] + u32[LOOKUP_BASE + 1] + (keyLow < u32[RIP] ? 1 : 0)) >>> 0;
  const hash = keyLow ^ ((keyLow >>> BY_RIP_LOG2) | (keyHigh << (32 - BY_RIP_LOG2)));
  return (BLOCK_TABLE + (hash & ((1 << BY_RIP_LOG2) - 1)) * BY_RIP_BYTES) >>> 2;
}

/** Bank offset of the page of the block that generated code would find at `state.rip`; undefined where it would ask. */
export function pageAtRip(cpu: Cpu): number | undefined {
  const { u32 } = cpu;
  const entry = locateRip(u32);
  if (u32[entry] === keyLow && u32[entry + 1] === keyHigh && u32[entry + 2] === u32[BLOCK_TAG])
    return u32[(u32[entry + 3] + block.physical) >>> 2] & ~0xfff;
  return codePageAt(cpu, u32[RIP], u32[RIP + 1]);
}

/** Enters the block found at `state.rip`. */
export function enterByRip(cpu: Cpu, header: number): void {
  const { u32 } = cpu;
  const entry = locateRip(u32);
  u32[entry] = keyLow;
  u32[entry + 1] = keyHigh;
  u32[entry + 2] = u32[BLOCK_TAG];
  u32[entry + 3] = header;
}

/** Enters a block of 64-bit code that lies in one page, at `state.rip` and bank offset `physical`, and its page. */
export function enterByPhysical(cpu: Cpu, physical: number, header: number): void {
  const { u32 } = cpu;
  const low = u32[RIP];
  const page = (CODE_TLB + ((low >>> 12) & ((1 << CODE_TLB_LOG2) - 1)) * CODE_TLB_ENTRY_BYTES) >>> 2;
  u32[page] = low & ~0xfff;
  u32[page + 1] = u32[RIP + 1];
  u32[page + 2] = u32[BLOCK_TAG];
  u32[page + 3] = physical & ~0xfff;
  const hash = (physical ^ (physical >>> 12)) & ((1 << PHYSICAL_LOG2) - 1);
  const entry = (PHYSICAL_TABLE + hash * PHYSICAL_BYTES) >>> 2;
  u32[entry] = physical;
  u32[entry + 1] = header;
}

/** Empties the tables; headers may be used for other blocks afterwards. */
export function clearBlockTables(cpu: Cpu): void {
  const { u8 } = cpu;
  u8.fill(0, BLOCK_TABLE, BLOCK_TABLE + BY_RIP_BYTES * (1 << BY_RIP_LOG2));
  u8.fill(0, PHYSICAL_TABLE, PHYSICAL_TABLE + PHYSICAL_BYTES * (1 << PHYSICAL_LOG2));
  u8.fill(0, CODE_TLB, CODE_TLB + CODE_TLB_ENTRY_BYTES * (1 << CODE_TLB_LOG2));
}

/** Bank offset of the page that 64-bit code at a linear page (halves) is fetched from, as far as the code TLB knows; else undefined. */
export function codePageAt(cpu: Cpu, low: number, high: number): number | undefined {
  const { u32 } = cpu;
  const page = (CODE_TLB + ((low >>> 12) & ((1 << CODE_TLB_LOG2) - 1)) * CODE_TLB_ENTRY_BYTES) >>> 2;
  const isKnown = u32[page] === (low & ~0xfff) >>> 0 && u32[page + 1] === high >>> 0 && u32[page + 2] === u32[BLOCK_TAG];
  return isKnown ? u32[page + 3] : undefined;
}

/*
 * The words of an entry are loaded once, into locals: V8 loads twice what a comparison alone uses (see emitTagUse), so where there is no
 * other use of a key, a miss stores it.
 */

/** Pushes the place of `rip`'s page in the code TLB, less CODE_TLB. */
function emitCodeEntry(c: Code, rip: number): void {
  c.get(rip).i64(12n).op("i64.shr_u").op("i32.wrap_i64");
  c.i32((1 << CODE_TLB_LOG2) - 1)
    .op("i32.and")
    .i32(Math.log2(CODE_TLB_ENTRY_BYTES))
    .op("i32.shl");
}

interface PageLocals {
  /** i64. */
  readonly rip: number;
  readonly found: number;
  readonly rest: number;
  /** i32. */
  readonly entry: number;
}

/** Opens an `if`, unlikely: the code TLB does not lead from `rip` to the page whose bank offset `page` pushes. */
export function emitUnlessInPage(c: Code, { rip, found, rest, entry }: PageLocals, page: () => void): void {
  emitCodeEntry(c, rip);
  c.tee(entry).memory("i64.load", CODE_TLB).tee(found).get(rip).i64(-4096n).op("i64.and").op("i64.ne");
  c.get(entry)
    .memory("i64.load", CODE_TLB + 8)
    .tee(rest);
  page();
  c.op("i64.extend_i32_u").i64(32n).op("i64.shl").loadAt("i64.load32_u", state.blockTag).op("i64.or").op("i64.ne");
  c.op("i32.or").ifUnlikely();
  emitTagUse(c, found);
  emitTagUse(c, rest);
}

interface ByRipLocals {
  /** i64. */
  readonly rip: number;
  readonly key: number;
  readonly found: number;
  readonly rest: number;
  /** i32. */
  readonly slot: number;
}

interface FindLocals extends ByRipLocals {
  readonly entry: number;
  readonly physical: number;
}

/** The lower half of `rest` is the present tag. */
function emitIsPresent(c: Code, rest: number): void {
  c.get(rest).op("i32.wrap_i64").loadAt("i32.load", state.blockTag).op("i32.eq");
}
function emitUpperHalf(c: Code, rest: number): void {
  c.get(rest).i64(32n).op("i64.shr_u").op("i32.wrap_i64");
}

/** Pushes whether the table by RIP has the block at `rip`; its header is the upper half of `rest` then. */
function emitIsByRip(c: Code, { rip, key, found, rest, slot }: ByRipLocals): void {
  c.get(rip).loadAt("i64.load", state.lookupBase).op("i64.add").tee(key);
  c.get(key).i64(BigInt(BY_RIP_LOG2)).op("i64.shr_u").op("i64.xor").op("i32.wrap_i64");
  c.i32((1 << BY_RIP_LOG2) - 1)
    .op("i32.and")
    .i32(Math.log2(BY_RIP_BYTES))
    .op("i32.shl")
    .tee(slot);
  c.memory("i64.load", BLOCK_TABLE).tee(found).get(key).op("i64.eq");
  c.get(slot)
    .memory("i64.load", BLOCK_TABLE + 8)
    .set(rest);
  emitIsPresent(c, rest);
  c.op("i32.and");
}

/** Pushes the header of the block at `rip`, or 0: `find` is called for what the table by RIP does not have. */
export function emitFindQuickly(c: Code, locals: ByRipLocals, find: number): void {
  emitIsByRip(c, locals);
  c.if("i32");
  emitUpperHalf(c, locals.rest);
  c.else();
  emitTagUse(c, locals.found);
  c.get(locals.rip).call(find).end();
}

/** Returns the header of the block at `rip` from the tables, or falls through. */
export function emitFind(c: Code, { entry, physical, ...byRip }: FindLocals): void {
  const { rip, key, found, rest, slot } = byRip;
  const isPresent = (): void => emitIsPresent(c, rest);
  const upperHalf = (): void => emitUpperHalf(c, rest);

  emitIsByRip(c, byRip);
  c.if();
  upperHalf();
  c.return();
  c.end();
  emitTagUse(c, found);

  emitCodeEntry(c, rip);
  c.tee(entry).memory("i64.load", CODE_TLB).tee(found).get(rip).i64(-4096n).op("i64.and").op("i64.eq");
  c.get(entry)
    .memory("i64.load", CODE_TLB + 8)
    .set(rest);
  isPresent();
  c.op("i32.and").if();
  upperHalf();
  c.get(rip).op("i32.wrap_i64").i32(4095).op("i32.and").op("i32.or").tee(physical);
  c.get(physical).i32(12).op("i32.shr_u").op("i32.xor");
  c.i32((1 << PHYSICAL_LOG2) - 1)
    .op("i32.and")
    .i32(Math.log2(PHYSICAL_BYTES))
    .op("i32.shl");
  c.memory("i64.load", PHYSICAL_TABLE).tee(rest).op("i32.wrap_i64").get(physical).op("i32.eq").if();
  c.get(slot).get(key).memory("i64.store", BLOCK_TABLE);
  c.get(slot);
  c.get(rest).i64(-0x1_0000_0000n).op("i64.and").loadAt("i64.load32_u", state.blockTag).op("i64.or");
  c.memory("i64.store", BLOCK_TABLE + 8);
  upperHalf();
  c.return();
  c.end();
  c.end();
  emitTagUse(c, found);
}
