/** The inline part of guest memory accesses: the probe of the data TLB that cpu-state.ts describes. */
import { state, TLB, TLB_ADDEND, TLB_ENTRIES, TLB_ENTRY_BYTES, TLB_READ_TAG, TLB_WRITE_TAG } from "../cpu-state.ts";
import type { Code } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";

const ENTRY_SHIFT = 12 - Math.log2(TLB_ENTRY_BYTES);
const ENTRY_MASK = (TLB_ENTRIES - 1) * TLB_ENTRY_BYTES;

/**
 * Pushes whether the TLB serves the access, and leaves the bank offset of its entry in the local `entry`, and the tag found there in
 * `tag`, which the slow path is to pass to `emitTagUse`. `linear` is a local; the number of bytes is a constant, or `lastByte` pushes
 * bytes - 1 as an i64.
 */
export function emitMatch(
  c: Code,
  linear: number,
  entry: number,
  tag: number,
  isWrite: boolean,
  lastByte: (() => void) | undefined,
  bytes: number | undefined,
): void {
  c.get(linear).op("i32.wrap_i64").i32(ENTRY_SHIFT).op("i32.shr_u").i32(ENTRY_MASK).op("i32.and").tee(entry);
  c.memory("i64.load", TLB + (isWrite ? TLB_WRITE_TAG : TLB_READ_TAG)).tee(tag);
  c.get(linear);
  if (lastByte !== undefined) {
    lastByte();
    c.op("i64.add");
  } else if (bytes !== undefined && bytes > 1) c.i64(bytes - 1).op("i64.add");
  c.i64(-4096).op("i64.and").loadAt("i64.load", state.tlbTag).op("i64.or").op("i64.eq");
}

/**
 * A second use of the tag, where it costs nothing. What is used by a comparison alone, V8 loads twice: once as the comparison's operand,
 * once because a load might trap.
 */
export function emitTagUse(c: Code, tag: number): void {
  c.i32(0).get(tag).memory("i64.store", state.missedTag);
}

/** After a match: pushes the bank offset of the byte at `linear`. */
export function emitPlace(c: Code, linear: number, entry: number): void {
  c.get(linear)
    .op("i32.wrap_i64")
    .get(entry)
    .memory("i32.load", TLB + TLB_ADDEND)
    .op("i32.add");
}

/** Opens `if (result i32)` on a hit, leaves the bank offset, and goes on in `else`: the caller adds the slow path's i32, and `end`. */
export function emitProbe(
  c: Code,
  f: FunctionBuilder,
  linear: number,
  isWrite: boolean,
  lastByte: (() => void) | undefined,
  bytes: number | undefined,
): void {
  const entry = f.allocate("i32");
  const tag = f.allocate("i64");
  emitMatch(c, linear, entry, tag, isWrite, lastByte, bytes);
  c.if("i32");
  emitPlace(c, linear, entry);
  c.else();
  emitTagUse(c, tag);
  f.release("i32", entry);
  f.release("i64", tag);
}
