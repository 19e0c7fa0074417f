/** AES rounds, SHA rounds and message schedules, and products without carries, on the slots that `viaHelper` fills. */
import type { Cpu } from "../cpu.ts";
import { DESTINATION, RESULT, SOURCE_VECTOR } from "../fpu/sse.ts";
import type { HelperTable } from "../helpers.ts";

// ---- AES (FIPS 197) ----

const double = (x: number): number => ((x << 1) ^ ((x & 0x80) !== 0 ? 0x1b : 0)) & 0xff;
const SBOX = new Uint8Array(256);
const INVERSE_SBOX = new Uint8Array(256);
// Powers of 3, which generates all but 0: the inverse of its n-th is its (255 - n)-th
const POWERS = new Uint8Array(256);
const LOGARITHMS = new Uint8Array(256);
for (let i = 0, power = 1; i < 255; i++, power ^= double(power)) {
  POWERS[i] = power;
  LOGARITHMS[power] = i;
}
const product = (x: number, y: number): number => (x === 0 || y === 0 ? 0 : POWERS[(LOGARITHMS[x] + LOGARITHMS[y]) % 255]);
for (let x = 0; x < 256; x++) {
  const inverse = x === 0 ? 0 : POWERS[(255 - LOGARITHMS[x]) % 255];
  const rotated = (by: number): number => ((inverse << by) | (inverse >> (8 - by))) & 0xff;
  SBOX[x] = inverse ^ rotated(1) ^ rotated(2) ^ rotated(3) ^ rotated(4) ^ 0x63;
}
SBOX.forEach((y, x) => {
  INVERSE_SBOX[y] = x;
});
/** Products of each byte with a column of the mixing matrix, for its first row; the other rows are rotations. */
function mixingTable(box: Uint8Array, factors: readonly number[]): Uint32Array {
  const table = new Uint32Array(256);
  for (let x = 0; x < 256; x++) for (let i = 0; i < 4; i++) table[x] |= product(box[x], factors[i]) << (8 * i);
  return table;
}
const IDENTITY = Uint8Array.from({ length: 256 }, (_, i) => i);
const MIXED = mixingTable(SBOX, [2, 1, 1, 3]);
const INVERSE_MIXED = mixingTable(INVERSE_SBOX, [14, 9, 13, 11]);
const INVERSE_COLUMN = mixingTable(IDENTITY, [14, 9, 13, 11]);
const rotateLeft = (x: number, by: number): number => (x << by) | (x >>> (32 - by));

/** `direction` 1: ShiftRows; 3: its inverse; 0: none. */
function mixRound(cpu: Cpu, from: number, table: Uint32Array, direction: number, hasKey: boolean): void {
  const { u8, u32 } = cpu;
  for (let column = 0; column < 4; column++) {
    let word = hasKey ? u32[(SOURCE_VECTOR >> 2) + column] : 0;
    for (let row = 0; row < 4; row++) {
      const byte = u8[from + ((column + row * direction) & 3) * 4 + row];
      word ^= rotateLeft(table[byte], row * 8);
    }
    u32[(RESULT >> 2) + column] = word;
  }
}
function lastRound(cpu: Cpu, box: Uint8Array, direction: number): void {
  const { u8 } = cpu;
  for (let i = 0; i < 16; i++) {
    const row = i & 3;
    const byte = u8[DESTINATION + (((i >> 2) + row * direction) & 3) * 4 + row];
    u8[RESULT + i] = box[byte] ^ u8[SOURCE_VECTOR + i];
  }
}
const substitute = (word: number): number =>
  SBOX[word & 255] | (SBOX[(word >>> 8) & 255] << 8) | (SBOX[(word >>> 16) & 255] << 16) | (SBOX[word >>> 24] << 24);

// ---- SHA (FIPS 180-4) ----

const SHA1_CONSTANTS = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];
function sha1Function(kind: number, b: number, c: number, d: number): number {
  if (kind === 0) return (b & c) ^ (~b & d);
  if (kind === 2) return (b & c) ^ (b & d) ^ (c & d);
  return b ^ c ^ d;
}
const rotateRight = (x: number, by: number): number => (x >>> by) | (x << (32 - by));
const words = (cpu: Cpu, slot: number): Int32Array => cpu.i32.subarray(slot >> 2, (slot >> 2) + 4);
const setWords = (cpu: Cpu, ...values: readonly number[]): void => {
  values.forEach((value, i) => {
    cpu.i32[(RESULT >> 2) + i] = value;
  });
};
const sigma0 = (x: number): number => rotateRight(x, 7) ^ rotateRight(x, 18) ^ (x >>> 3);
const sigma1 = (x: number): number => rotateRight(x, 17) ^ rotateRight(x, 19) ^ (x >>> 10);

/** Words are named by the manual's order: the last of a vector is the first of the message. */
export const cryptoHelpers: HelperTable = {
  aesEncrypt: (cpu) => mixRound(cpu, DESTINATION, MIXED, 1, true),
  aesEncryptLast: (cpu) => lastRound(cpu, SBOX, 1),
  aesDecrypt: (cpu) => mixRound(cpu, DESTINATION, INVERSE_MIXED, 3, true),
  aesDecryptLast: (cpu) => lastRound(cpu, INVERSE_SBOX, 3),
  aesInverseMixColumns: (cpu) => mixRound(cpu, SOURCE_VECTOR, INVERSE_COLUMN, 0, false),
  aesKeyAssist(cpu, constant) {
    const [, x1, , x3] = words(cpu, SOURCE_VECTOR);
    const [y1, y3] = [substitute(x1), substitute(x3)];
    setWords(cpu, y1, rotateRight(y1, 8) ^ (constant & 255), y3, rotateRight(y3, 8) ^ (constant & 255));
  },

  /** Bits 0 and 4 of `control` choose the halves. */
  carrylessMultiply(cpu, control) {
    const a = cpu.u64[(DESTINATION >> 3) + (control & 1)];
    const bLow = cpu.u32[(SOURCE_VECTOR >> 2) + ((control >> 4) & 1) * 2];
    const bHigh = cpu.u32[(SOURCE_VECTOR >> 2) + ((control >> 4) & 1) * 2 + 1];
    const [aLow, aHigh] = [Number(a & 0xffff_ffffn) | 0, Number(a >> 32n) | 0];
    let [r0, r1, r2, r3] = [0, 0, 0, 0];
    for (let bit = 63; bit >= 0; bit--) {
      r3 = (r3 << 1) | (r2 >>> 31);
      r2 = (r2 << 1) | (r1 >>> 31);
      r1 = (r1 << 1) | (r0 >>> 31);
      r0 <<= 1;
      if (((bit >= 32 ? bHigh >>> (bit - 32) : bLow >>> bit) & 1) !== 0) {
        r0 ^= aLow;
        r1 ^= aHigh;
      }
    }
    setWords(cpu, r0, r1, r2, r3);
  },

  sha1NextE(cpu) {
    const [b0, b1, b2, b3] = words(cpu, SOURCE_VECTOR);
    setWords(cpu, b0, b1, b2, (b3 + rotateLeft(words(cpu, DESTINATION)[3], 30)) | 0);
  },
  sha1Message1(cpu) {
    const [a0, a1, a2, a3] = words(cpu, DESTINATION);
    const [, , b2, b3] = words(cpu, SOURCE_VECTOR);
    setWords(cpu, a0 ^ b2, a1 ^ b3, a2 ^ a0, a3 ^ a1);
  },
  sha1Message2(cpu) {
    const [a0, a1, a2, a3] = words(cpu, DESTINATION);
    const [b0, b1, b2] = words(cpu, SOURCE_VECTOR);
    const w16 = rotateLeft(a3 ^ b2, 1);
    setWords(cpu, rotateLeft(a0 ^ w16, 1), rotateLeft(a1 ^ b0, 1), rotateLeft(a2 ^ b1, 1), w16);
  },
  sha1Rounds4(cpu, control) {
    const kind = control & 3;
    let [d, c, b, a] = words(cpu, DESTINATION);
    let e = 0;
    const message = words(cpu, SOURCE_VECTOR);
    for (let round = 0; round < 4; round++) {
      const next = (sha1Function(kind, b, c, d) + rotateLeft(a, 5) + message[3 - round] + e + SHA1_CONSTANTS[kind]) | 0;
      [e, d, c, b, a] = [d, c, rotateLeft(b, 30), a, next];
    }
    setWords(cpu, d, c, b, a);
  },
  sha256Message1(cpu) {
    const [a0, a1, a2, a3] = words(cpu, DESTINATION);
    const b0 = words(cpu, SOURCE_VECTOR)[0];
    setWords(cpu, (a0 + sigma0(a1)) | 0, (a1 + sigma0(a2)) | 0, (a2 + sigma0(a3)) | 0, (a3 + sigma0(b0)) | 0);
  },
  sha256Message2(cpu) {
    const [a0, a1, a2, a3] = words(cpu, DESTINATION);
    const [, , b2, b3] = words(cpu, SOURCE_VECTOR);
    const w16 = (a0 + sigma1(b2)) | 0;
    const w17 = (a1 + sigma1(b3)) | 0;
    setWords(cpu, w16, w17, (a2 + sigma1(w16)) | 0, (a3 + sigma1(w17)) | 0);
  },
  /** The words of the message with the rounds' constants. Destination: C D G H from the top; source: A B E F. */
  sha256Rounds2(cpu, first, second) {
    let [h, g, d, c] = words(cpu, DESTINATION);
    let [f, e, b, a] = words(cpu, SOURCE_VECTOR);
    for (const keyed of [first, second]) {
      const sum1 = rotateRight(e, 6) ^ rotateRight(e, 11) ^ rotateRight(e, 25);
      const sum0 = rotateRight(a, 2) ^ rotateRight(a, 13) ^ rotateRight(a, 22);
      const t1 = (h + sum1 + ((e & f) ^ (~e & g)) + keyed) | 0;
      const t2 = (sum0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
    }
    setWords(cpu, f, e, b, a);
  },
};
