/**
 * What a region asks of the processor's state before anything else, where its instructions depend on it: else it returns at once, and the
 * interpreter runs the block, and finds out which instruction faults.
 */
import { state } from "../cpu-state.ts";
import type { Code } from "../wasm/code.ts";

const EM_TS = 0xc,
  OSFXSR = 0x200;
export function returnUnlessStack(c: Code, mask: bigint): void {
  c.loadAt("i64.load", state.stackMask).i64(BigInt.asIntN(64, mask)).op("i64.ne").ifUnlikely();
  c.get(0).return().end();
}
export function returnUnlessSse(c: Code): void {
  c.loadAt("i32.load", state.cr4).i32(OSFXSR).op("i32.and").i32(OSFXSR).op("i32.xor");
  c.loadAt("i32.load", state.cr0).i32(EM_TS).op("i32.and").op("i32.or").ifUnlikely();
  c.get(0).return().end();
}

const TS = 8,
  PE = 1,
  OSXSAVE = 0x4_0000,
  VM = 0x2_0000,
  SSE_AND_AVX = 6;
export function returnUnlessAvx(c: Code): void {
  const lacks = (offset: number, bits: number): Code =>
    c.loadAt("i32.load", offset).i32(bits).op("i32.and").i32(bits).op("i32.xor");
  lacks(state.cr4, OSXSAVE);
  lacks(state.xcr0, SSE_AND_AVX).op("i32.or");
  c.loadAt("i32.load", state.cr0)
    .i32(TS | PE)
    .op("i32.and")
    .i32(PE)
    .op("i32.xor")
    .op("i32.or");
  c.loadAt("i32.load", state.systemFlags).i32(VM).op("i32.and").op("i32.or").ifUnlikely();
  c.get(0).return().end();
}
