/** FPU and vector state to start cases from, as FXSAVE images. */
import type { Random } from "../random.ts";

/** The state after FNINIT, with the default MXCSR. */
export function initialFx(): Uint8Array {
  const fx = new Uint8Array(512);
  const view = new DataView(fx.buffer);
  view.setUint16(0, 0x37f, true);
  view.setUint32(24, 0x1f80, true);
  return fx;
}

const DOUBLES = [
  0,
  -0,
  1,
  -1,
  0.5,
  3,
  1e10,
  -7.25,
  1e300,
  1e-300,
  5e-324,
  Number.MAX_VALUE,
  Infinity,
  -Infinity,
  NaN,
  2 ** 31,
  2 ** 63,
  -(2 ** 31),
];

function writeDouble(random: Random, view: DataView, at: number): void {
  view.setFloat64(at, random.oneIn(3) ? random.pick(DOUBLES) : (random.next() - 2 ** 31) / 2 ** random.below(40), true);
}

function writeSingle(random: Random, view: DataView, at: number): void {
  view.setFloat32(at, random.oneIn(3) ? random.pick(DOUBLES) : (random.next() - 2 ** 31) / 2 ** random.below(40), true);
}

function writeRandom(random: Random, view: DataView, at: number): void {
  view.setBigUint64(at, random.next64(), true);
}

/** 16 bytes that are doubles, singles, integers or noise. */
function writeVector(random: Random, view: DataView, at: number): void {
  const kind = random.below(4);
  for (let i = 0; i < 16; i += 8) {
    if (kind === 0) writeDouble(random, view, at + i);
    else if (kind === 1) {
      writeSingle(random, view, at + i);
      writeSingle(random, view, at + i + 4);
    } else if (kind === 2) view.setBigInt64(at + i, BigInt(random.below(200) - 100), true);
    else writeRandom(random, view, at + i);
  }
}

const EXPONENTS = [0x3fff, 0x4000, 0x3ffe, 0x4005, 0x3ff0, 0x403e, 0x401e, 0x400e, 0x3c01, 0x43fe, 0x7ffe, 0x0001];

/** A valid extended number, now and then a special one. */
function writeExtended(random: Random, view: DataView, at: number): void {
  const sign = random.oneIn(2) ? 0x8000 : 0;
  switch (random.below(12)) {
    case 0:
      view.setBigUint64(at, 0n, true);
      view.setUint16(at + 8, sign, true);
      break;
    case 1:
      view.setBigUint64(at, 1n << 63n, true);
      view.setUint16(at + 8, sign | 0x7fff, true);
      break;
    case 2:
      view.setBigUint64(at, (3n << 62n) | (random.next64() >> 2n), true);
      view.setUint16(at + 8, sign | 0x7fff, true);
      break;
    case 3:
      // A small integer
      view.setBigUint64(at, BigInt(random.below(128) + 128) << 56n, true);
      view.setUint16(at + 8, sign | (0x3fff + random.below(8)), true);
      break;
    default:
      view.setBigUint64(at, (1n << 63n) | random.next64(), true);
      view.setUint16(at + 8, sign | (random.oneIn(4) ? random.pick(EXPONENTS) : 0x3fff - 20 + random.below(40)), true);
  }
}

/** Exceptions masked; rounding, precision, TOP, tags and contents random. */
export function randomFx(random: Random): Uint8Array {
  const fx = new Uint8Array(512);
  const view = new DataView(fx.buffer);
  const precision = random.oneIn(2) ? 3 : random.pick([0, 2, 3]);
  const rounding = random.oneIn(2) ? 0 : random.below(4);
  view.setUint16(0, 0x7f | (precision << 8) | (rounding << 10), true);
  view.setUint16(2, random.below(8) << 11, true);
  fx[4] = random.oneIn(2) ? 0xff : random.below(256);
  view.setUint32(24, 0x1f80 | (random.oneIn(2) ? 0 : random.below(4) << 13) | (random.oneIn(8) ? 0x8040 : 0), true);
  for (let i = 0; i < 8; i++) writeExtended(random, view, 32 + i * 16);
  for (let i = 0; i < 16; i++) writeVector(random, view, 160 + i * 16);
  return fx;
}
