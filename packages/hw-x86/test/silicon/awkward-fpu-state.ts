/**
 * FPU and vector state at the edges of floating point: denormals, infinities, NaNs, numbers near the limits, sticky flags set,
 * exceptions unmasked, DAZ and FTZ on.
 */
import type { Random } from "../random.ts";
import { randomFx } from "./fpu-state.ts";

function exponentField(random: Random, bias: number): number {
  switch (random.below(8)) {
    case 0:
    case 1:
      return bias - 3 + random.below(6);
    case 2:
      return 0;
    case 3:
      return 2 * bias + 1;
    case 4:
      return random.below(2 * bias + 2);
    case 5:
      return 1 + random.below(3);
    default:
      return bias + random.below(bias === 127 ? 32 : 64);
  }
}

/** A number of `bits` bits with a fraction that is zero, short or full. */
export function awkwardFloat(random: Random, bits: 32 | 64): bigint {
  const fractionBits = bits === 32 ? 23n : 52n;
  const all = (1n << fractionBits) - 1n;
  let fraction = random.next64() & all;
  const shape = random.below(3);
  if (shape === 0) fraction = 0n;
  else if (shape === 1) fraction = (fraction >> (fractionBits / 2n)) << (fractionBits / 2n);
  const field = exponentField(random, bits === 32 ? 127 : 1023);
  return (BigInt(random.below(2)) << BigInt(bits - 1)) | (BigInt(field) << fractionBits) | fraction;
}

/** 8 bytes: a double or two singles. */
export function awkwardQuadword(random: Random, isDouble: boolean): bigint {
  return isDouble ? awkwardFloat(random, 64) : (awkwardFloat(random, 32) << 32n) | awkwardFloat(random, 32);
}

export function awkwardFx(random: Random): Uint8Array {
  const fx = randomFx(random);
  const view = new DataView(fx.buffer);
  let mxcsr = 0x1f80;
  // Where PE is set the engine takes its fast path
  if (random.oneIn(2)) mxcsr |= 0x20;
  if (random.oneIn(4)) mxcsr |= random.below(4) << 13;
  if (random.oneIn(8)) mxcsr |= random.pick([0x8000, 0x40, 0x8040]);
  if (random.oneIn(8)) mxcsr &= ~(random.below(64) << 7);
  view.setUint32(24, mxcsr, true);
  const isDouble = random.oneIn(2);
  for (let at = 160; at < 416; at += 8) if (!random.oneIn(8)) view.setBigUint64(at, awkwardQuadword(random, isDouble), true);
  if (random.oneIn(6)) view.setUint16(0, view.getUint16(0, true) & ~random.below(64), true);
  return fx;
}
